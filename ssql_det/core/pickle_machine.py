"""The machine that executes a pickle. It can only make tensors, arrays and plain containers, at a limited cost.

- Names stand for what :mod:`~ssql_det.core.pickle_names` says; nothing is imported for a file.
- State is set on inert objects, arrays and state dicts only: on a function or a class it would change the program.
- Only lists, dicts and the like are added to. Assigning to part of a list or a tensor could enlarge it.
- An opcode takes what it reads from the file, or charges the file's budget: those that are inherited make at most
  about a hundred bytes of each byte of the file, in constant time.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import IO, Any, ClassVar

import numpy as np
import torch

from ssql_det.core import pickle_names, tensor_rebuild
from ssql_det.core.container_rebuild import CONSTRUCTORS, Maker, check_type
from ssql_det.core.inert import InertObject
from ssql_det.core.reading_budget import ELEMENT, Budget, RefusedError

_INHERITED = """PROTO NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT STRING SHORT_BINSTRING
    SHORT_BINBYTES UNICODE SHORT_BINUNICODE EMPTY_LIST EMPTY_DICT EMPTY_TUPLE LIST TUPLE TUPLE1 TUPLE2 TUPLE3 MARK POP
    POP_MARK DUP GET BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE BINPERSID GLOBAL STACK_GLOBAL"""
_CALL, _SET = 512, 256  # costs: of a call and what it makes, of a set
_MAX_INT_BYTES, _MAX_INT_DIGITS = 1024, 4300
_MAX_REFERENCE = 6  # values
_MAX_MEMO_INDEX = 1 << 32  # that of the binary opcodes


class RestrictedUnpickler(pickle._Unpickler):
    """Python's unpickler (the one written in Python) with the inherited opcodes above and those of this class.

    ``functions`` are more that a pickle may call, by module and name. ``load_storage`` gives the storages that it
    refers to.
    """

    stack: list[Any]
    metastack: list[Any]
    memo: dict[int, Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[bytes, Callable[..., None]]] = {  # type: ignore[assignment]
        opcode: pickle._Unpickler.dispatch[opcode[0]]
        for opcode in (getattr(pickle, name) for name in _INHERITED.split())
    }

    def __init__(
        self,
        file: IO[bytes],
        budget: Budget,
        functions: Mapping[tuple[str, str], Maker],
        load_storage: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._file, self._length = file, get_length(file)
        self._budget, self._functions, self._load_storage = budget, functions, load_storage
        self._foreign: dict[tuple[str, str], Any] = {}

    def load(self) -> Any:
        read, dispatch, stop = self._file.read, self.dispatch, pickle.STOP
        self.read, self.readline = read, self._file.readline
        self.metastack, self.stack = [], []
        self.append = self.stack.append
        while (opcode := read(1)) != stop:
            dispatch[opcode](self)
        return self.stack.pop()

    def load_end_of_file(self) -> None:
        raise EOFError("it ends in the middle of a pickle")

    dispatch[b""] = load_end_of_file

    # ---- values that the file writes out -------------------------------------------------------------------------

    def load_frame(self) -> None:
        self.read(8)  # its length, for those who read a file in large pieces

    dispatch[pickle.FRAME] = load_frame

    def read_counted(self, count_format: str) -> bytes:
        """The bytes after their count. It is compared with the file before memory is allocated."""
        (count,) = struct.unpack(count_format, self.read(struct.calcsize(count_format)))
        if not 0 <= count <= self._length - self._file.tell():
            raise EOFError(f"it claims {count} bytes more")
        return self.read(count)

    def load_bytes(self) -> None:
        self.append(self.read_counted("<I"))

    dispatch[pickle.BINBYTES] = load_bytes

    def load_long_bytes(self) -> None:
        self.append(self.read_counted("<Q"))

    dispatch[pickle.BINBYTES8] = load_long_bytes

    def load_bytearray(self) -> None:
        self.append(bytearray(self.read_counted("<Q")))

    dispatch[pickle.BYTEARRAY8] = load_bytearray

    def load_text(self) -> None:
        self.append(str(self.read_counted("<I"), "utf-8", "surrogatepass"))

    dispatch[pickle.BINUNICODE] = load_text

    def load_long_text(self) -> None:
        self.append(str(self.read_counted("<Q"), "utf-8", "surrogatepass"))

    dispatch[pickle.BINUNICODE8] = load_long_text

    def load_python_2_string(self) -> None:
        self.append(str(self.read_counted("<i"), "latin1"))

    dispatch[pickle.BINSTRING] = load_python_2_string

    def load_long_int(self) -> None:
        content = self.read_counted("<i")
        if len(content) > _MAX_INT_BYTES:
            raise ValueError(f"it has an integer of {len(content)} bytes")
        self.append(int.from_bytes(content, "little", signed=True))

    dispatch[pickle.LONG4] = load_long_int

    def load_decimal_int(self) -> None:
        line = self.readline()
        if len(line) > _MAX_INT_DIGITS:
            raise ValueError(f"it has an integer of {len(line)} digits")
        booleans = {pickle.FALSE[1:]: False, pickle.TRUE[1:]: True}
        self.append(booleans[line] if line in booleans else int(line.rstrip(b"L\n"), 0))

    dispatch[pickle.INT] = dispatch[pickle.LONG] = load_decimal_int

    def load_put(self) -> None:
        index = int(self.readline())
        if not 0 <= index < _MAX_MEMO_INDEX:
            raise ValueError("it has an invalid place in its memo")
        self.memo[index] = self.stack[-1]

    dispatch[pickle.PUT] = load_put

    # ---- containers ----------------------------------------------------------------------------------------------

    def add_to_dict(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (dict, InertObject)):
            raise RefusedError(f"it sets items of a {type(target).__name__}, which a checkpoint never does")
        self._budget.check_keys(items[::2], target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.add_to_dict(items)

    dispatch[pickle.DICT] = load_dict

    def load_setitem(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self.add_to_dict(items)

    dispatch[pickle.SETITEM] = load_setitem

    def load_setitems(self) -> None:
        self.add_to_dict(self.pop_mark())

    dispatch[pickle.SETITEMS] = load_setitems

    def add_to_list(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (list, deque, InertObject)):
            raise RefusedError(f"it appends to a {type(target).__name__}, which a checkpoint never does")
        target.extend(items)

    def load_append(self) -> None:
        self.add_to_list([self.stack.pop()])

    dispatch[pickle.APPEND] = load_append

    def load_appends(self) -> None:
        self.add_to_list(self.pop_mark())

    dispatch[pickle.APPENDS] = load_appends

    def load_empty_set(self) -> None:
        self._budget.charge(_SET)
        self.append(set())

    dispatch[pickle.EMPTY_SET] = load_empty_set

    def load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        check_type(target, set)
        self._budget.check_keys(items, target)
        target.update(items)

    dispatch[pickle.ADDITEMS] = load_additems

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self._budget.charge(_SET)
        self._budget.check_keys(items, items)
        self.append(frozenset(items))

    dispatch[pickle.FROZENSET] = load_frozenset

    # ---- classes, calls, states and storages ---------------------------------------------------------------------

    def find_class(self, module: str, name: str) -> Any:
        key = pickle_names.resolve(module, name)
        for names in (pickle_names.KNOWN, self._functions, self._foreign):
            if key in names:
                return names[key]
        self._foreign[key] = pickle_names.make_foreign(self._budget, *key)
        return self._foreign[key]

    def call(self, function: Any, arguments: tuple[Any, ...], options: Mapping[str, Any] | None = None) -> Any:
        """Call something that :meth:`find_class` gave; but for inert classes, with the budget as first argument."""
        if not isinstance(arguments, tuple):
            raise RefusedError(f"it calls a function with a {type(arguments).__name__}, which a checkpoint never does")
        options = options or {}
        self._budget.charge(_CALL + ELEMENT * (len(arguments) + len(options)))
        if isinstance(function, type):
            if issubclass(function, InertObject):
                return function(*arguments, **options)
            function = CONSTRUCTORS.get(function)
        if isinstance(function, FunctionType):
            return function(self._budget, *arguments, **options)
        raise RefusedError(f"it calls a {type(function).__name__}, which a checkpoint never does")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    dispatch[pickle.REDUCE] = dispatch[pickle.NEWOBJ] = load_reduce

    def load_newobj_ex(self) -> None:
        arguments, options = self.stack[-2:]
        check_type(options, dict)
        del self.stack[-2:]
        self.stack[-1] = self.call(self.stack[-1], arguments, options)

    dispatch[pickle.NEWOBJ_EX] = load_newobj_ex

    def load_obj(self) -> None:
        function, *arguments = self.pop_mark()
        self.append(self.call(function, tuple(arguments)))

    dispatch[pickle.OBJ] = load_obj

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in ("module", "name"))
        self.append(self.call(self.find_class(module, name), tuple(self.pop_mark())))

    dispatch[pickle.INST] = load_inst

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self._budget.charge(_CALL)
        if isinstance(target, InertObject):
            target.state = state
        elif isinstance(target, np.dtype):
            tensor_rebuild.set_dtype_state(target, state)
        elif isinstance(target, np.ndarray):
            tensor_rebuild.set_array_state(self._budget, target, state)
        elif type(target) is OrderedDict:  # a state dict's _metadata
            check_type(state, dict)
            self._budget.charge(ELEMENT * len(state))
            vars(target).update(state)
        else:
            raise RefusedError(f"it changes a {type(target).__name__}, which a checkpoint never does")

    dispatch[pickle.BUILD] = load_build

    def persistent_load(self, pid: Any) -> Any:
        """A storage, which ``torch.save`` keeps outside the pickle; in old files also a module with its source code."""
        check_type(pid, tuple)
        if len(pid) > _MAX_REFERENCE:
            raise ValueError(f"it refers to something by {len(pid)} values")
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(length), *view) if self._load_storage:
                return self._load_storage(dtype, key, length, *view)
            case ("module", kind, *_):
                return kind
        raise ValueError("it refers to something that the file does not have")


def get_length(file: IO[bytes]) -> int:
    position = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(position)
    return length
