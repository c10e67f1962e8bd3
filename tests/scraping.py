"""`/metrics` as a scraper reads it: with the token of the tests, into samples."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

TOKEN = "a-token-of-the-metrics"
BEARER = {"authorization": f"Bearer {TOKEN}"}

#: Each value by the name of its sample and the values of its labels.
Samples = dict[tuple[str, ...], float]


async def samples(client: httpx.AsyncClient) -> Samples:
    """Read `/metrics`, which must answer in the text format, and return its samples."""
    response = await client.get("/metrics", headers=BEARER)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
