"""The passage on the server under many clients."""

from docs_results import load_results


def serve() -> str:
    """What many clients at once lose and wait for, and how memory grows."""
    rows, source = load_results("serve.json")
    n_sent, first, last = int(rows.n_clients.sum()), rows.memory_mb.iloc[0], rows.memory_mb.iloc[-1]
    lost, wrong = int(rows.n_lost.sum()), int(rows.n_wrong.sum())
    return (
        f"{rows.n_clients.iloc[0]} clients at once, {len(rows)} times, with {rows.n_that_left.iloc[0]} more that leave "
        f"while they wait, on the built-in pair and two cores: of {n_sent} requests {lost} were lost and {wrong} "
        f"answered with another result than alone. A request alone takes {rows.seconds_alone.iloc[0]:.2f} s; of "
        f"{rows.n_clients.iloc[0]} at once the median waits {rows.median_seconds.median():.1f} s and the last "
        f"{rows.slowest_seconds.median():.1f} s. The server's memory was {first:.0f} MB after the first round and "
        f"{last:.0f} MB after the last. {source}"
    )
