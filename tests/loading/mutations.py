"""Ways in which a file comes to hold something else than what was written, by chance or on purpose, from a seed."""

import json
import struct

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

HOSTILE_NAMES = (
    "../x",
    "/etc/passwd",
    "a\0b",
    "x" * 5000,
    "\x1b[2J",
    "\u202egpj",
    "<script>",
    "",
    "..\\x",
    "__class__",
)
_VALUES = (
    None,
    True,
    -1,
    0,
    0.5,
    2**63,
    -(10**400),
    "x",
    "\ud800",
    [],
    {},
    [[1]],
    {"a": 1},
    [None, "x"],
    *HOSTILE_NAMES,
)
_NOT_OBJECTS = (b"", b"[]", b"3", b"null", b'"x"', b"{", b"\xff\xfe{}", b"\x00" * 40, b'{"a": "\xff"}', b"{'a': 1}")
_DTYPES = (torch.int64, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool, torch.complex64)


def mutate(folder, kind, rng):
    """Change one file in the folder in one way; which, the random generator says."""
    suffixes, change = KINDS[kind]
    path = rng.choice([path for path in sorted(folder.iterdir()) if path.suffix in suffixes])
    change(path, rng)


def truncated(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice([0, 1, 8, len(data) // 2, len(data) - 1, rng.randrange(len(data))])])


def bit_flipped(path, rng):
    data = bytearray(path.read_bytes())
    # Headers and names are rare among the bytes, and worth more tries than numbers.
    end = min(len(data), 400) if rng.random() < 0.5 else len(data)
    data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def wrong_shape(path, rng):
    if path.suffix == ".bin":
        data = path.read_bytes()
        path.write_bytes(rng.choice([data[:-2], data + data[:4], data * 2]))
        return

    def change(values):
        if isinstance(values, pd.DataFrame):
            return rng.choice([values.iloc[1:], pd.concat([values, values]), values.iloc[:0], values.iloc[::-1]])
        name = rng.choice(sorted(values))
        tensor = values[name]
        shapes = [tensor.flatten(), tensor.unsqueeze(0), torch.stack([tensor, tensor]), tensor.flatten()[:0]]
        if tensor.ndim > 0:
            shapes += [tensor[1:], torch.cat([tensor, tensor]), tensor.transpose(0, -1), tensor.transpose(0, -1)[1:]]
        return {**values, name: rng.choice(shapes).clone(memory_format=torch.contiguous_format)}

    _rewrite(path, change)


def wrong_dtype(path, rng):
    if path.suffix == ".bin":
        numbers = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.bfloat16)
        path.write_bytes(numbers.to(rng.choice([torch.float32, torch.float16])).view(torch.uint8).numpy().tobytes())
        return

    def change(values):
        name = rng.choice(sorted(values))
        if isinstance(values, pd.DataFrame):
            return values.assign(**{name: values[name].astype(rng.choice([str, object, "category"]))})
        return {**values, name: values[name].to(rng.choice(_DTYPES))}

    _rewrite(path, change)


def not_finite(path, rng):
    value = rng.choice([float("nan"), float("inf"), -float("inf")])
    if path.suffix == ".bin":
        data = bytearray(path.read_bytes())
        data[2:4] = b"\xc0\x7f"
        path.write_bytes(data)
        return

    def change(values):
        if isinstance(values, pd.DataFrame):
            name = rng.choice([name for name in values if values[name].dtype.kind == "f"])
            column = values[name].copy()
            column.iloc[rng.randrange(len(column))] = value
            return values.assign(**{name: column})
        floating = [name for name in sorted(values) if values[name].is_floating_point()]
        name = rng.choice(floating or sorted(values))
        tensor = values[name].clone() if floating else values[name].float()
        tensor.view(-1)[rng.randrange(tensor.numel())] = value
        return {**values, name: tensor}

    _rewrite(path, change)


def hostile_name(path, rng):
    hostile = rng.choice(HOSTILE_NAMES)
    if path.suffix == ".json":
        _maybe_unrecorded(path, rng)
        fields = json.loads(path.read_text())
        holder, key = rng.choice(_entries(fields))
        if rng.random() < 0.5:
            holder[key] = hostile
        else:
            holder[hostile] = holder.pop(key, hostile)
        path.write_text(json.dumps(fields))
        return

    def change(values):
        name = rng.choice(sorted(values))
        if isinstance(values, pd.DataFrame):
            return values.rename(columns={name: hostile})
        renamed = {**values, hostile: values[name].clone()}
        if rng.random() < 0.5:
            del renamed[name]
        return renamed

    _rewrite(path, change)


def keys(path, rng):
    """One is missing, one too many is there, or two have changed places."""
    if path.suffix == ".json":
        _maybe_unrecorded(path, rng)
        fields = json.loads(path.read_text())
        holder, key = rng.choice(_entries(fields))
        if rng.random() < 0.7:
            holder.pop(key, None)
        else:
            holder["one_more"] = holder.get(key)
        path.write_text(json.dumps(fields))
        return

    def change(values):
        names = sorted(values)
        first, second = rng.sample(names, 2) if len(names) > 1 else names * 2
        choice = rng.randrange(3)
        if isinstance(values, pd.DataFrame):
            swapped = values.rename(columns={first: second, second: first})
            return [values.drop(columns=first), values.assign(one_more=values[first]), swapped][choice]
        if choice == 0:
            return {name: tensor for name, tensor in values.items() if name != first}
        if choice == 1:
            return {**values, "one_more": values[first].clone()}
        return {**values, first: values[second], second: values[first]}

    _rewrite(path, change)


def hostile_json(path, rng):
    """The JSON of a file, or that which begins a safetensors file."""
    if path.suffix == ".json":
        _maybe_unrecorded(path, rng)
        path.write_bytes(_hostile_text(json.loads(path.read_text()), rng))
        return
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    text = _hostile_text(json.loads(data[8:end]), rng)
    path.write_bytes(struct.pack("<Q", rng.choice([len(text), len(text), 2**40])) + text + data[end:])


def _hostile_text(fields, rng):
    text = json.dumps(fields)
    choice = rng.randrange(6 if fields else 2)
    if choice == 0:
        return rng.choice(_NOT_OBJECTS)
    if choice == 1:
        depth = rng.choice([70, 1000, 100_000])
        return (text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}").encode()
    if choice == 2:
        key = rng.choice(sorted(fields))
        return (text[:-1] + f", {json.dumps(key)}: {json.dumps(rng.choice(_VALUES))}}}").encode()
    holder, key = rng.choice(_places(fields))
    holder[key] = rng.choice(_VALUES) if choice in (3, 4) else "HERE"
    number = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "9" * 6000, "-0", "1e-400", "0x10", "1" + "0" * 30])
    return json.dumps(fields).replace('"HERE"', number).encode()


def _places(value):
    """Every (holder, key) in nested JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in [(value, key), *_places(part)]]


def _entries(fields):
    """Those of dictionaries; of an empty one, the first it might have."""
    return [place for place in _places(fields) if isinstance(place[0], dict)] or [(fields, "first")]


def _maybe_unrecorded(path, rng):
    """Delete the file's checksum half of the time, as for an edit on purpose."""
    checksums = path.with_name("checksums.json")
    if rng.random() < 0.5 and path != checksums and checksums.exists():
        fields = json.loads(checksums.read_text())
        fields["files"].pop(path.name, None)
        checksums.write_text(json.dumps(fields))


def _rewrite(path, change):
    """The file again, with other values: a dictionary of tensors, or a table."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            values, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        save_file({name: tensor.contiguous() for name, tensor in change(values).items()}, path, metadata=metadata)
    elif path.suffix == ".pt":
        values = torch.load(path, weights_only=True)
        holder = max(_dictionaries(values), key=lambda part: len(_tensors_in(part)))
        tensors = _tensors_in(holder)
        changed = change(tensors)
        for name in tensors:
            del holder[name]
        holder.update(changed)
        torch.save(values, path)
    elif path.suffix == ".parquet":
        saved = pq.read_table(path)
        changed = pa.Table.from_pandas(change(saved.to_pandas()))
        metadata = {name: value for name, value in (saved.schema.metadata or {}).items() if name != b"pandas"}
        pq.write_table(changed.replace_schema_metadata({**changed.schema.metadata, **metadata}), path)
    else:
        change(pd.read_csv(path, index_col=0)).to_csv(path)


def _dictionaries(value):
    """Every dictionary in nested values."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [value] * isinstance(value, dict) + [found for part in parts for found in _dictionaries(part)]


def _tensors_in(holder):
    return {name: value for name, value in holder.items() if isinstance(value, torch.Tensor)}


_TENSORS, _TABLES = (".safetensors", ".pt"), (".parquet", ".csv")
KINDS = {
    "truncated": ((*_TENSORS, *_TABLES, ".json", ".bin"), truncated),
    "bit_flipped": ((*_TENSORS, *_TABLES, ".json", ".bin"), bit_flipped),
    "wrong_shape": ((*_TENSORS, *_TABLES, ".bin"), wrong_shape),
    "wrong_dtype": ((*_TENSORS, *_TABLES, ".bin"), wrong_dtype),
    "not_finite": ((*_TENSORS, *_TABLES, ".bin"), not_finite),
    "hostile_name": ((*_TENSORS, *_TABLES, ".json"), hostile_name),
    "keys": ((*_TENSORS, *_TABLES, ".json"), keys),
    "hostile_json": ((".safetensors", ".json"), hostile_json),
}


def kinds_for(folder):
    """The kinds of which there is a file in the folder."""
    suffixes = {path.suffix for path in folder.iterdir()}
    return [kind for kind, (applies, _) in KINDS.items() if suffixes & set(applies)]
