"""A real browser: the machine's own Chromium, without a window."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

#: Debian and Ubuntu name it so; others know it under its maker's names.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

#: What a test of pages is marked with: it runs where there is a Chromium, and the build, which installs one, fails
#: without it.
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="There is no Chromium on this machine."
)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start Chromium, whose every context has a profile of its own."""
    if CHROMIUM is None:
        pytest.fail("There is no Chromium on this machine: apt-get install chromium.")
    async with async_playwright() as playwright:
        # Its own sandbox needs what containers and root do not have; it sees no page but ours.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()
