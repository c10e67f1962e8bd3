"""`tollgate demo`, and the seeding that `tollgate serve --demo` shares with it."""

from rich.markup import escape

from gateway.cli.console import err, fail, out
from gateway.cli.running import read_settings, run
from gateway.services import Services
from gateway.settings import Settings


def demo() -> None:
    """Seed the demo organization, with two months of usage, and print its sandbox key."""
    settings = read_settings()
    key = run(seed_demo, settings)
    out.print(key, highlight=False)
    print_key_file(settings)


async def seed_demo(services: Services) -> str:
    """Make the demo organization, or bring it up to today, and return its key."""
    from gateway.demo import seed

    try:
        with err.status("Seeding the demo organization…"):
            return await seed(services)
    except OSError as error:
        fail(f"{services.settings.demo_key_file} cannot be written: {error.strerror}")


def print_key_file(settings: Settings) -> None:
    """Print where the demo's key is kept."""
    err.print(f"(also in the file {escape(settings.demo_key_file)}, which only you can read)", highlight=False)
