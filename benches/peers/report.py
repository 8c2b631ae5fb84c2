"""The setting and the table, as Markdown."""

import datetime
import hashlib
import os
import platform
import statistics

FLAGS = ["avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp"]


def processor():
    """Its name and the flags that matter for matrices and distances."""
    name, flags = platform.processor() or platform.machine(), set()
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags = set(value.split())
    except OSError:
        pass
    return name, [flag for flag in FLAGS if flag in flags]


def description_of(program):
    """Which executable it was. The version alone does not say: builds of many commits have the same."""
    with open(program, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()[:12]
    built = datetime.datetime.fromtimestamp(os.path.getmtime(program), datetime.timezone.utc)
    return f"{os.path.getsize(program) / 1e6:.0f} MB, sha256 {digest}, built {built:%Y-%m-%d %H:%M} UTC"


def quantile(values, part):
    """The value at a part of the sorted list."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def number(value):
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(ours, theirs):
    return f"{ours / theirs:.2f}" if theirs else "-"


def cell(row, values, ours, mark=""):
    """`p50 / p95 (ratio)`, or a single number where there are few samples."""
    if not values:
        return ""
    median = statistics.median(values)
    text = number(median)
    if row.unit == "ms" and len(values) >= 20:
        text += f" / {number(quantile(values, 0.95))}"
    if ours:
        text += f" ({ratio(statistics.median(ours), median)})"
    return text + mark


def table(rows, samples, columns):
    """`samples[row title][contestant]` is a list of numbers; `columns` is {contestant: heading}."""
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        found = samples.get(row.title, {})
        if not any(found.values()):
            continue
        own = next((name for name in ("ours", "ours-fast") if found.get(name)), None)
        cells = []
        for column in columns:
            if column == "ours":
                cells.append(cell(row, found.get(own), None))
            else:
                compared = found.get(own) if row.compared else None
                cells.append(cell(row, found.get(column), compared, row.marks.get(column, "")))
        lines.append(f"| {row.title}, {row.unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parts_table(parts):
    """Where the time of our searches goes: `parts[row title]` has lists of `ms`, `took_ms` and `engine_ms`."""
    lines = ["| ours, medians in ms | seen by the client | `took_ms` | the model | search |", "|---|---|---|---|---|"]
    for title, part in parts.items():
        seen, took = statistics.median(part["ms"]), statistics.median(part["took_ms"])
        engine = statistics.median(part["engine_ms"])
        cells = [number(value) for value in (seen, took, engine, max(0.0, took - engine))]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS:"))


def load_average():
    return " ".join(f"{value:.2f}" for value in os.getloadavg())
