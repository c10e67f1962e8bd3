import { ask, GATEWAY, NoResult } from './gateway.ts';
import { graphql } from './gql/index.ts';
import type { RefillMutation } from './gql/graphql.ts';

/** What the page needs to ask the gateway by itself. */
export type Session = { endpoint: string; token: string; expiresAt: string };

/** What a refill answers: its success, or the rule that refused it. */
export type RefillResult = NonNullable<RefillMutation['refillBillingMeter']>;

export type Refill = { meterId: string; refill: string; idempotencyKey: string };

const FindCustomer = graphql(`
  query FindCustomer($externalId: String!) {
    customerByExternalId(externalId: $externalId) {
      id
    }
  }
`);

const OpenSession = graphql(`
  mutation OpenSession($customerId: ID!) {
    createCustomerSession(input: { customerId: $customerId, expiresInSeconds: 900 }) {
      __typename
      ... on CreateCustomerSessionSuccess {
        token
        expiresAt
      }
      ... on UserError {
        message
      }
    }
  }
`);

const FindMeter = graphql(`
  query FindMeter($id: ID!) {
    node(id: $id) {
      __typename
      ... on BillingMeter {
        workspaceId
        externalMeterId
        customer {
          externalId
        }
      }
    }
  }
`);

const RefillMeter = graphql(`
  mutation Refill($input: RefillBillingMeterInput!) {
    refillBillingMeter(input: $input) {
      __typename
      ... on RefillBillingMeterSuccess {
        replayed
        entry {
          amount
          totalCreditsAfter
        }
      }
      ... on InvalidInput {
        field
      }
      ... on UserError {
        code
        message
      }
    }
  }
`);

/** Makes a token that reads what is this customer's, and nothing else, for a quarter of an hour. */
export async function openSession(customer: string): Promise<Session> {
  const found = await ask(FindCustomer, { externalId: customer });
  if (!found.customerByExternalId) throw new NoResult(`There is no customer ${customer}.`);
  const { createCustomerSession: made } = await ask(OpenSession, { customerId: found.customerByExternalId.id });
  if (made?.__typename !== 'CreateCustomerSessionSuccess') throw new NoResult(made?.message);
  return { endpoint: new URL('/graphql', GATEWAY).href, token: made.token, expiresAt: made.expiresAt };
}

/** Refills a meter of the customer's; null where it is not this customer's. */
export async function refill(customer: string, wanted: Refill): Promise<RefillResult | null> {
  const { node: meter } = await ask(FindMeter, { id: wanted.meterId });
  // Whatever the page sends: a customer refills its own meters.
  if (meter?.__typename !== 'BillingMeter' || meter.customer?.externalId !== customer) return null;
  // A product takes the payment here, under the same key.
  const { workspaceId, externalMeterId } = meter;
  const { refillBillingMeter } = await ask(RefillMeter, {
    input: { workspaceId, externalMeterId, refill: wanted.refill, idempotencyKey: wanted.idempotencyKey },
  });
  if (!refillBillingMeter) throw new NoResult('The gateway answered nothing.');
  return refillBillingMeter;
}
