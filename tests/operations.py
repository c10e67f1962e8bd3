"""Operations with a name, and the digests by which logs, metrics and traces identify their documents."""

READ_METER = """query Meter($w: String!, $m: String!) {
  billingMeter(workspaceId: $w, externalMeterId: $m) { totalCredits usedCredits }
}"""
#: The first digits of the SHA-256 of the document above, as `sha256sum` prints them.
READ_METER_DIGEST = "cd0739ac893714e5"

RECORD_USAGE = "mutation Record($input: RecordUsageInput!) { recordUsage(input: $input) { __typename } }"
#: Likewise.
RECORD_USAGE_DIGEST = "e64135884a0d3f68"
