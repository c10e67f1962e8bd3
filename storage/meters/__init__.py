"""What lies in the bucket of a meter: its row, its ledger, and all that is counted, granted and held of it."""
