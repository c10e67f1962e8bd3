// What stands in the tabs at first. Each runs as it stands on the data of `tollgate serve --demo`.
export const STARTERS = [
  {
    query: `# A customer with its meters, and what they
# used on each of the last 30 days.
# Amounts are whole credits, as strings of
# digits. Ctrl+Enter runs it.
query Customer {
  customerByExternalId(externalId: "acme-robotics") {
    name
    email
    billingMeters {
      nodes {
        workspaceId
        externalMeterId
        totalCredits
        usedCredits
        availableCredits
        usage {
          day
          billingUsageName
          totalBillingUsage
        }
      }
    }
  }
}
`,
  },
  {
    query: `# A refill adds to the total. Run it twice:
# under one idempotency key it counts once,
# and the answer says "replayed": true.
mutation Refill {
  refillBillingMeter(
    input: {
      workspaceId: "images"
      externalMeterId: "acme-robotics"
      refill: "500"
      idempotencyKey: "graphiql-refill-1"
    }
  ) {
    __typename
    ... on RefillBillingMeterSuccess {
      replayed
      billingMeter {
        totalCredits
        availableCredits
      }
    }
    ... on UserError {
      code
      message
    }
  }
}
`,
  },
  {
    query: `# More than the meter has left: a refusal is
# an answer with a type of its own, and nothing
# is taken. Ask for "5" and it is recorded,
# once, however often you run it.
mutation RecordUsage {
  recordUsage(
    input: {
      workspaceId: "images"
      externalMeterId: "acme-robotics"
      eventId: "graphiql-event-1"
      amount: "1000000"
    }
  ) {
    __typename
    ... on RecordUsageSuccess {
      accepted
      replayed
      billingMeter {
        availableCredits
      }
    }
    ... on InsufficientCredits {
      available
    }
    ... on UserError {
      code
      message
    }
  }
}
`,
  },
  {
    query: `# Reserves credits for work whose cost is not
# known yet, and commits what it did cost. In
# earnest the work lies between the two. Run it
# again: both are replayed, and nothing changes.
mutation Hold {
  holdCredits(
    input: {
      workspaceId: "images"
      externalMeterId: "acme-robotics"
      holdId: "graphiql-hold-1"
      amount: "20"
    }
  ) {
    __typename
    ... on HoldCreditsSuccess {
      replayed
      entry {
        heldCreditsAfter
      }
    }
    ... on UserError {
      code
      message
    }
  }
  commitHold(
    input: {
      workspaceId: "images"
      externalMeterId: "acme-robotics"
      holdId: "graphiql-hold-1"
      amount: "12"
    }
  ) {
    __typename
    ... on CommitHoldSuccess {
      accepted
      replayed
      billingMeter {
        heldCredits
        availableCredits
      }
    }
    ... on UserError {
      code
      message
    }
  }
}
`,
  },
]
