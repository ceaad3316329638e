"""Coverage-guided fuzzing of what reads result files and kept images, with Atheris (https://github.com/google/atheris).

    pip install atheris
    python -m benchmarks.fuzz_results -max_total_time=120 [CORPUS_FOLDER]

An input is bytes. The first chooses what they do to a small valid file: they replace it; they replace its HDF5 body
behind a right seal; they replace some of its bytes behind one; or they say which attributes, arrays and links of it to
change to what, with a digest that is right again where the content can still be read. The last finds most, because
HDF5's own checks, the seal and the digest stop nearly all others. Anything but a result or a `BenchError` of one line
is a finding, and ends the run; so is an error that the reader's own code hides behind one. Options are libFuzzer's.
"""

import hashlib
import io
import json
import random
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

import atheris
import h5py
import numpy as np

with atheris.instrument_imports(include=["bench"]):
    from bench.engine import adversarials
    from bench.errors import BenchError
    from bench.results import file as results
from tests.support import example_results

SEAL, IMAGES = 512, 3
BENCH = str(Path(results.__file__).parent)
NAMES = ["run", "suite", "findings", "digest", "format", "format_version", "label", "attack", "norm", "epsilon"]
NAMES += ["objective", "parameters", "seconds", "order", "corruption", "severity", "centres", "samples", "fdr_clean"]
NAMES += [
    "result_digest",
    "prediction",
    "final_prediction",
    "distance",
    "loss",
    "stage",
    "index",
    "row",
    "scale",
    "code",
]
NAMES += ["exact_row", "exact", "attacks", "corruptions", "features", "clean_prediction"]
KINDS = ["<i2", "<i8", "<f4", "|i1", ">i2", "<f8", "|S4", "|b1", "<c8", "<u8"]
RESULT = example_results.example()
MEASURED = example_results.featured((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))
CORRUPTED = example_results.corrupted({"fog": (3, 2), "snow": (4, 1)})


def seeds(folder):
    """Bytes of a result, of one with features, of one under corruptions, and of images beside the first."""
    found = []
    for result in (RESULT, MEASURED, CORRUPTED):
        results.write_result(result, folder / "seed.h5")
        found.append((folder / "seed.h5").read_bytes())
    rows, pair, one = np.array([0, 3]), np.ones((2, 1, 2, 2), np.int8), np.ones((1, 1, 2, 2), np.float32)
    kept = adversarials.Adversarials(rows, np.ones(2, np.float32), pair, np.array([5]), one)
    digest = results.content_digest(RESULT)
    adversarials.write_adversarials(dict.fromkeys(RESULT.attacks, kept), digest, folder / "seed.h5")
    return [*found, (folder / "seed.h5").read_bytes()]


def sealed(body, kind, version):
    """A file with a right seal over any body."""
    text = f"{kind.name} {version} {hashlib.sha256(body).hexdigest()}\n"
    return text.encode().ljust(SEAL, b"\0") + body


def json_of(draws, levels=3):
    """A value as JSON can hold one."""
    kind = draws.ConsumeIntInRange(0, 9 if levels else 6)
    if kind > 7:
        return {draws.PickValueInList([*NAMES, "name", "version", "cells", "derived", "worst_of"]): json_of(draws, 0)}
    if kind > 6:
        return [json_of(draws, levels - 1) for _ in range(draws.ConsumeIntInRange(0, 3))]
    plain = [None, True, draws.ConsumeInt(8), draws.ConsumeFloat(), draws.ConsumeUnicode(12), [], {}]
    return plain[kind]


def value_of(draws):
    """What an attribute may be set to."""
    kind = draws.ConsumeIntInRange(0, 7)
    if kind == 0:
        return np.zeros(draws.ConsumeIntInRange(0, 5), draws.PickValueInList(KINDS))
    if kind == 1:
        return "[" * draws.ConsumeIntInRange(0, 3000)
    if kind == 2:
        return h5py.Empty(draws.PickValueInList(KINDS))
    plain = [draws.ConsumeInt(8), draws.ConsumeFloat(), draws.ConsumeUnicode(20), draws.ConsumeBytes(9)]
    return json.dumps(json_of(draws)) if kind == 7 else plain[kind - 3]


def members(file):
    """The file and all that is in it."""
    found = [file]
    file.visititems(lambda name, member: found.append(member))
    return found


def edited_json(draws, text):
    """One member of a JSON text replaced."""
    value = json.loads(text)
    place, key = value, None
    while isinstance(place, dict | list) and place and (key is None or draws.ConsumeBool()):
        key = draws.PickValueInList(sorted(place) if isinstance(place, dict) else list(range(len(place))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draws.ConsumeBool():
            place[key] = json_of(draws)
            break
        place = inner
    return json.dumps(value)


def edit(draws, file):
    """One change to an open file."""
    node = draws.PickValueInList(members(file))
    name = draws.PickValueInList(sorted(node.attrs) or NAMES) if draws.ConsumeBool() else draws.PickValueInList(NAMES)
    kind = draws.ConsumeIntInRange(0, 6)
    if kind <= 1:
        node.attrs[name] = value_of(draws)
    elif kind == 2:
        del node.attrs[name]
    elif kind == 3:
        node = file if "run" not in node.attrs and "parameters" not in node.attrs else node
        name = "parameters" if "parameters" in node.attrs else draws.PickValueInList(["run", "suite", "findings"])
        node.attrs[name] = edited_json(draws, node.attrs[name])
    elif isinstance(node, h5py.Group):
        edit_member(draws, node, name, kind)
    elif node.name != "/":
        replace_array(draws, node.parent, node.name.rpartition("/")[2])


def edit_member(draws, group, name, kind):
    """A member of a group removed, linked elsewhere, or made an array."""
    name = draws.PickValueInList(sorted(group)) if len(group) and draws.ConsumeBool() else name
    if name in group:
        del group[name]
    if kind == 4:
        links = [h5py.SoftLink("/samples/label"), h5py.SoftLink("/none"), h5py.ExternalLink("/dev/zero", "/"), group]
        group[name] = draws.PickValueInList(links)
    elif kind == 5:
        replace_array(draws, group, name)
    elif draws.ConsumeBool():
        group.create_group(name)


def replace_array(draws, group, name):
    """An array of any type and of small, no, or much too large a shape, whose values need not be stored."""
    if name in group:
        del group[name]
    shape = [draws.ConsumeIntInRange(0, 12) for _ in range(draws.ConsumeIntInRange(0, 4))]
    kind = draws.PickValueInList(KINDS)
    if draws.ConsumeIntInRange(0, 7) == 0:
        group.create_dataset(name, (draws.ConsumeIntInRange(0, 2**40),), kind, chunks=(1024,), compression="gzip")
    else:
        group[name] = np.full(shape, draws.ConsumeIntInRange(-3, 40)).astype(kind)


def with_right_digest(file):
    """Gives an open result the digest that its content should have, where its content can be read at all."""
    wanted = []

    def noted(result):
        wanted.append(digest_of(result))
        return wanted[-1]

    digest_of, results.content_digest = results.content_digest, noted
    with suppress(BenchError, LookupError, TypeError, ValueError, AttributeError, OSError, RuntimeError):
        results._take(file, 2**20)
    results.content_digest = digest_of
    if wanted:
        file.attrs["digest"] = wanted[0]


def structured(draws, seed, kind, version):
    """A valid file with some changes, sealed again."""
    buffer = io.BytesIO(seed)
    with h5py.File(buffer, "r+") as file:
        for _ in range(draws.ConsumeIntInRange(1, 4)):
            with suppress(ValueError, TypeError, OSError, RuntimeError, KeyError, OverflowError):  # HDF5 cannot hold it
                edit(draws, file)
        if kind is results.RESULT_FILE and draws.ConsumeBool():
            with_right_digest(file)
    return sealed(buffer.getvalue()[SEAL:], kind, version)


def spliced(draws, seed):
    """A valid file with some of its bytes replaced."""
    body = bytearray(seed[SEAL:])
    for _ in range(draws.ConsumeIntInRange(1, 4)):
        place = draws.ConsumeIntInRange(0, len(body) - 1)
        new = draws.ConsumeBytes(draws.ConsumeIntInRange(1, 8))
        body[place : place + len(new)] = new
    return bytes(body)


def content_of(draws, number, known):
    """Bytes of a file, made in one of four ways from a known one."""
    kind = adversarials.ADVERSARIALS_FILE if number == IMAGES else results.RESULT_FILE
    version = 2 if number in (1, 2) else 1
    way = draws.ConsumeIntInRange(0, 9)
    if way == 0:
        return draws.ConsumeBytes(sys.maxsize)
    if way == 1:
        return sealed(draws.ConsumeBytes(sys.maxsize), kind, version)
    if way == 2:
        return sealed(spliced(draws, known[number]), kind, version)
    return structured(draws, known[number], kind, version)


def main():
    """Fuzz until told to stop."""
    folder = Path(tempfile.mkdtemp())
    path, known = folder / "fuzzed.h5", seeds(folder)

    def test(data):
        draws = atheris.FuzzedDataProvider(data)
        number = draws.ConsumeIntInRange(0, IMAGES)
        path.write_bytes(content_of(draws, number, known))
        try:
            if number == IMAGES:
                adversarials.read_adversarials(path, RESULT, (1, 2, 2))
            else:
                results.read_result(path)
        except BenchError as error:
            if "\n" in str(error):
                raise AssertionError(str(error)) from error
            # The reader turns every error of HDF5 into this one; those of its own code would hide there.
            cause = getattr(error.__context__, "__cause__", None)
            if cause is not None and traceback.extract_tb(cause.__traceback__)[-1].filename.startswith(BENCH):
                raise cause from None

    begin = folder / "corpus"  # libFuzzer begins with single bytes otherwise, which change little
    begin.mkdir()
    draws = random.Random(0)
    for number in range(200):
        (begin / str(number)).write_bytes(draws.randbytes(draws.randint(20, 400)))
    atheris.Setup([*sys.argv, str(begin)], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
