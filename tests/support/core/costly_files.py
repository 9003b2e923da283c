"""Files of at most 1 MB that would cost a careless reader gigabytes, hours or its stack, by what they consist of."""

import io
import struct

import torch
from support.core.crafted_pickles import make_pickle, make_zip, push, push_call, push_dtype, push_global

SIZE = 1_000_000
MANY = 100_000
MODULUS = 2**61 - 1  # the hash of an integer is its remainder
EMPTY_TUPLE, NONE, FALSE, TWICE = b")", b"N", b"\x89", b"2"
TUPLE, TUPLE_OF_1, TUPLE_OF_2, LIST, DICT = b"t", b"\x85", b"\x86", b"l", b"d"
CALL, POP, SET_ITEM = b"R", b"0", b"s"
SAVE = [b"q" + bytes([place]) for place in range(250, 254)]  # places in the memo that ``push`` does not use
LOAD = [b"h" + bytes([place]) for place in range(250, 254)]


def push_bytes(content):
    return b"B" + struct.pack("<I", len(content)) + content


def push_text(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def push_list(element, count=MANY):
    return b"(" + element * count + LIST


def push_dict(count=MANY // 5):
    return b"}(" + b"".join(push_text(f"{key}") + NONE for key in range(count)) + b"u"


def push_colliding(count=60_000):
    return [b"\x8a\x0a" + (k * MODULUS).to_bytes(10, "little") for k in range(1, count)]


def repeat(opcodes, before=b"", after=b""):
    """The opcodes as often as there is room for them."""
    return make_pickle(before + opcodes * ((SIZE - len(before + after) - 3) // len(opcodes)) + after)


def make_tuple_of(opcodes, before=b""):
    return repeat(opcodes, before + b"(", TUPLE)


def call_often(function, *arguments):
    """Calls of a function, all with the same arguments."""
    before = function + SAVE[0] + POP + b"(" + b"".join(arguments) + TUPLE + SAVE[1] + POP
    return make_tuple_of(LOAD[0] + LOAD[1] + CALL, before)


def nest(function, opcodes):
    """A value that is made of the value below it."""
    return repeat(SAVE[1] + POP + opcodes, function + SAVE[0] + POP + NONE)


def push_array_parts(length=SIZE // 2):
    """A function, its arguments, and a state for what it returns."""
    state = push(1) + push((length,)) + push_dtype("u1") + push(False) + push_bytes(bytes(length))
    return empty_array + SAVE[0] + b"(" + EMPTY_ARRAY + TUPLE + SAVE[1] + b"(" + state + TUPLE + SAVE[2]


def push_storage(length=4):
    return b"(" + push("storage") + push_global("torch", "ByteStorage") + push("0") + push("cpu") + push(length) + b"tQ"


def push_tensor(length, stride):
    return push_call(rebuild, push_storage(), push(0), push((length,)), push((stride,)))


def with_storage(body):
    return make_zip({"x/data.pkl": make_pickle(body), "x/data/0": b"1234"})


def save_in_old_format(tensor):
    buffer = io.BytesIO()
    torch.save(tensor, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


deque, defaultdict, counter, ordered = (
    push_global("collections", name) for name in ("deque", "defaultdict", "Counter", "OrderedDict")
)
of_list, of_tuple, of_set, of_slice, of_bytes, of_bytearray, of_range = (
    push_global("builtins", name) for name in ("list", "tuple", "set", "slice", "bytes", "bytearray", "range")
)
inert = push_global("argparse", "Namespace")
encode = push_global("_codecs", "encode")
rebuild = push_global("torch._utils", "_rebuild_tensor")
in_bytes = push_global("torch.storage", "_load_from_bytes")
empty_array = push_global("numpy._core.multiarray", "_reconstruct")
EMPTY_ARRAY = push_global("numpy", "ndarray") + push((0,)) + push(b"b")
NESTED = EMPTY_TUPLE + TUPLE_OF_1 * (SIZE - 1000)
SHARED = EMPTY_TUPLE + (TWICE + TUPLE_OF_2) * 60
EXPANDED = push_tensor(10**8, 0)
TEXT = push_text("a" * (SIZE // 2))
HUGE = struct.pack("<Q", 2 << 30)

FLOODS = {
    "None": lambda: make_tuple_of(NONE),
    "floats": lambda: make_tuple_of(b"G12345678"),
    "lists": lambda: make_tuple_of(b"]"),
    "dicts": lambda: make_tuple_of(b"}"),
    "sets": lambda: make_tuple_of(b"\x8f"),
    "frozen sets": lambda: make_tuple_of(b"(\x91"),
    "marks": lambda: repeat(b"(", after=NONE),
    "places in the memo": lambda: repeat(b"\x94", NONE),
    "classes": lambda: make_pickle(b"(" + b"".join(b"cA\nC%x\n" % number for number in range(90_000)) + TUPLE),
    "functions": lambda: make_pickle(b"(" + b"".join(b"cA\nf%x\n" % number for number in range(90_000)) + TUPLE),
    "long names": lambda: make_tuple_of(
        LOAD[0] + LOAD[1] + b"\x93", push_text("a." * MANY) + SAVE[0] + push("A") + SAVE[1]
    ),
    "inert objects": lambda: call_often(inert),
    "inert objects of many arguments": lambda: call_often(inert, NONE * MANY),
    "inert objects of a large dict": lambda: call_often(
        push_global("copyreg", "_reconstructor"), inert, NONE, push_dict()
    ),
    "counters": lambda: call_often(counter),
    "ordered dicts": lambda: call_often(ordered),
    "ordered dicts of a large dict": lambda: call_often(ordered, push_dict()),
    "deques": lambda: call_often(deque),
    "deques of a large list": lambda: call_often(deque, push_list(NONE)),
    "lists of a large list": lambda: call_often(of_list, push_list(NONE)),
    "sets of a large list": lambda: call_often(of_set, push_list(NONE)),
    "bytearrays of many bytes": lambda: call_often(of_bytearray, push_bytes(bytes(SIZE // 2))),
    "encoded text": lambda: call_often(encode, TEXT, push("latin1")),
    "states of an ordered dict": lambda: repeat(LOAD[1] + b"b", push_dict() + SAVE[1] + ordered + EMPTY_TUPLE + CALL),
    "states of a dtype": lambda: repeat(
        LOAD[1] + b"b", push((3, ">", None, None, None, -1, -1, 0)) + SAVE[1] + push_dtype("f4")
    ),
    "arrays": lambda: make_tuple_of(LOAD[0] + LOAD[1] + CALL + LOAD[2] + b"b", push_array_parts()),
    "tensors": lambda: with_storage(call_often(rebuild, push_storage(), push(0), push((1,)), push((1,)))[2:-1]),
    "parameters": lambda: with_storage(
        call_often(push_global("torch._utils", "_rebuild_parameter"), push_tensor(1, 1), FALSE)[2:-1]
    ),
    "references": lambda: make_tuple_of(LOAD[0] + b"Q", b"(" + push("module") + NONE * MANY + TUPLE + SAVE[0]),
    "a file in the file": lambda: call_often(in_bytes, push_bytes(make_pickle(b"(" + b"]" * (SIZE // 2) + TUPLE))),
    "a tensor in the file": lambda: call_often(in_bytes, push_bytes(save_in_old_format(torch.zeros(MANY)))),
}
NESTINGS = {
    "lists": lambda: make_pickle(b"]" * (SIZE // 2) + b"a" * (SIZE // 2 - 1)),
    "tuples": lambda: make_pickle(NESTED),
    "slices": lambda: nest(of_slice, LOAD[0] + LOAD[1] + TUPLE_OF_1 + CALL),
    "deques": lambda: nest(deque, LOAD[0] + EMPTY_TUPLE + CALL + LOAD[1] + b"a"),
    "deques of lists": lambda: nest(deque, LOAD[0] + b"]" + LOAD[1] + b"a" + TUPLE_OF_1 + CALL),
    "defaultdicts": lambda: nest(defaultdict, LOAD[0] + EMPTY_TUPLE + CALL + NONE + LOAD[1] + SET_ITEM),
    "arrays": lambda: nest(
        empty_array,
        LOAD[0]
        + b"("
        + EMPTY_ARRAY
        + TUPLE
        + CALL
        + b"("
        + push(1)
        + push((1,))
        + push_dtype("O")
        + push(False)
        + b"]"
        + LOAD[1]
        + b"a"
        + b"tb",
    ),
    "a key": lambda: make_pickle(b"}" + NESTED + NONE + SET_ITEM),
    "an element of a set": lambda: make_pickle(b"\x8f(" + NESTED + b"\x90"),
    "an element of a frozen set": lambda: make_pickle(b"(" + NESTED + b"\x91"),
    "a function": lambda: make_pickle(NESTED + EMPTY_TUPLE + CALL),
    "a default factory": lambda: make_pickle(push_call(defaultdict, NESTED)),
    "a storage": lambda: make_pickle(
        b"(" + push("storage") + push_global("torch", "ByteStorage") + NESTED + push("cpu") + push(4) + b"tQ"
    ),
    "an encoding": lambda: make_pickle(push_call(encode, push(""), NESTED)),
    "a subclass": lambda: make_pickle(
        push_call(push_global("torch._tensor", "_rebuild_from_type_v2"), NESTED, NONE, EMPTY_TUPLE, NONE)
    ),
}
SHARINGS = {
    "tuples": lambda: make_pickle(SHARED),
    "lists": lambda: make_pickle(NONE + (SAVE[0] + b"(" + LOAD[0] + LOAD[0] + LIST) * 60),
    "dicts": lambda: make_pickle(NONE + (SAVE[0] + b"(K\x00" + LOAD[0] + b"K\x01" + LOAD[0] + DICT) * 60),
    "a key": lambda: make_pickle(b"}" + SHARED + NONE + SET_ITEM),
    "an element": lambda: make_pickle(push_call(of_set, b"(" + SHARED + LIST)),
    "a key of an inert object": lambda: make_pickle(push_call(inert) + SHARED + NONE + SET_ITEM),
    "an error": lambda: make_pickle(b"(" + SHARED + b"NtQ"),
}
COLLISIONS = {
    "keys": lambda: make_pickle(b"}(" + NONE.join([*push_colliding(), b""]) + b"u"),
    "keys that are set one by one": lambda: make_pickle(b"}" + (NONE + SET_ITEM).join([*push_colliding(), b""])),
    "keys of an inert object": lambda: make_pickle(
        push_call(inert) + b"(" + NONE.join([*push_colliding(), b""]) + b"u"
    ),
    "elements": lambda: make_pickle(b"\x8f(" + b"".join(push_colliding()) + b"\x90"),
    "elements of a list": lambda: make_pickle(push_call(of_set, b"(" + b"".join(push_colliding()) + LIST)),
    "places in the memo": lambda: make_pickle(NONE + b"".join(b"p%d\n" % (k * MODULUS) for k in range(1, 40_000))),
}
CLAIMS = {
    "bytes": lambda: make_pickle(b"\x8e" + HUGE),
    "a bytearray": lambda: make_pickle(b"\x96" + HUGE),
    "a frame": lambda: make_pickle(b"\x95" + HUGE + NONE),
    "a bytearray of a NumPy integer": lambda: make_pickle(
        push_call(
            of_bytearray, push_call(push_global("numpy._core.multiarray", "scalar"), push_dtype("i8"), push(HUGE))
        )
    ),
    "a list that is added to itself": lambda: make_pickle(
        b"]" + SAVE[0] + NONE + b"a" + (push_call(of_slice, push(0), push(0)) + LOAD[0] + SET_ITEM) * 40
    ),
    "a list of a tensor": lambda: with_storage(push_call(of_list, EXPANDED)),
    "a tuple of a tensor": lambda: with_storage(push_call(of_tuple, EXPANDED)),
    "a set of a tensor": lambda: with_storage(push_call(of_set, EXPANDED)),
    "a deque of a tensor": lambda: with_storage(push_call(deque, EXPANDED)),
    "bytes of a tensor": lambda: with_storage(push_call(of_bytes, EXPANDED)),
    "arguments of a tensor": lambda: with_storage(inert + EXPANDED + CALL),
    "a shape of a tensor": lambda: with_storage(push_call(rebuild, push_storage(), push(0), EXPANDED, EXPANDED)),
    "a storage of a tensor": lambda: with_storage(push_call(rebuild, EXPANDED, push(0), push((10**9,)), push((1,)))),
    "a negated tensor": lambda: with_storage(
        push_call(
            push_global("torch._utils", "_rebuild_tensor_v2"),
            push_storage(),
            push(0),
            push((10**9,)),
            push((0,)),
            push(False),
            NONE,
            push({"neg": True}),
        )
    ),
    "text in utf-7": lambda: call_often(encode, TEXT, push("utf-7")),
    "text in punycode": lambda: make_pickle(push_call(encode, push_text("ä" * (SIZE // 3)), push("punycode"))),
    "a dtype of many fields": lambda: make_pickle(
        push_call(push_global("numpy", "dtype"), push_text("f4," * (SIZE // 4)))
    ),
    "long integers": lambda: make_pickle(
        push_call(
            of_range, push(0), *(b"\x8b" + struct.pack("<i", size) + b"\x01" * size for size in (600_000, 300_000))
        )
    ),
    "long integers in hexadecimal": lambda: make_pickle(
        push_call(of_range, push(0), *(b"L0x" + b"f" * size + b"\n" for size in (600_000, 300_000)))
    ),
}
FILES = {
    f"{kind}: {name}": make
    for kind, files in {
        "many": FLOODS,
        "nested": NESTINGS,
        "shared": SHARINGS,
        "colliding": COLLISIONS,
        "claimed": CLAIMS,
    }.items()
    for name, make in files.items()
}
