"""Execute the program that a pickle is, on a machine that calls nothing."""

from __future__ import annotations

import struct
from typing import Any

from ema_cli.formats.pickles.batches import Batches
from ema_cli.formats.pickles.instructions import ACTIONS, STOP
from ema_cli.formats.pickles.machine import UNREAD, Machine
from ema_cli.formats.pickles.values import PickleError

MAX_INSTRUCTIONS = 20_000_000  # a tensor takes some forty
_OPERAND_BYTES = 5  # the longest instruction of a fixed length that `execute` writes out, with its operand

_uint, _int = struct.Struct("<I").unpack_from, struct.Struct("<i").unpack_from


def execute(machine: Machine, batches: Batches | None = None, most: int = MAX_INSTRUCTIONS) -> Any:
    """Execute until STOP, `most` instructions at most, and return the value on top of the stack.

    Batches of items that are among `batches` are taken over from there; others are put there.

    The instructions that make up nearly all of a description of tensors are written out here, which is three times as
    fast as the table. They do what `ACTIONS` says, which a test compares; the table has them too, for when a block of
    the file ends within one.

    Raises:
        PickleError: for a program that is too long, or that ends in the middle of a value.
    """
    data, position, stack, memo = machine.data, machine.position, machine.stack, machine.memo
    last = len(data) - _OPERAND_BYTES  # up to there a whole operand lies ahead
    begun = (0, 0, 0)  # of the batch that was begun last: its byte in the file, and the lengths of memo and marks
    for _ in range(most):
        # A batch that is all of the pickle ends within an operand's length of its end.
        opcode = data[position] if position < last else 0x75 if data.startswith(b"u", position) else 0
        match opcode:
            case 0x94 if not machine.memo_beyond:
                memo.append(stack[-1])
                position += 1
            case 0x72 if _uint(data, position + 1)[0] == len(memo) and not machine.memo_beyond:  # r
                memo.append(stack[-1])
                position += 5
            case 0x68 if (index := data[position + 1]) < len(memo) and memo[index] is not UNREAD:  # h
                stack.append(memo[index])
                position += 2
            case 0x6A if (index := _uint(data, position + 1)[0]) < len(memo) and memo[index] is not UNREAD:  # j
                stack.append(memo[index])
                position += 5
            case 0x4B:  # K
                stack.append(data[position + 1])
                position += 2
            case 0x85:
                stack[-1] = (stack[-1],)
                position += 1
            case 0x4D:  # M
                stack.append(data[position + 1] | data[position + 2] << 8)
                position += 3
            case 0x28:  # (
                position += 1
                if batches is not None and stack and type(stack[-1]) is dict:
                    if end := batches.take_over(machine, position):
                        position = end
                        continue
                    begun = (machine.base + position, len(memo), len(machine.marks))
                machine.marks.append(stack)
                machine.stack = stack = []
            case 0x52 | 0x81:  # R, and NEWOBJ, which comes to the same
                args = stack.pop()
                machine.call(stack.pop(), args)
                position += 1
            case 0x29:  # )
                stack.append(())
                position += 1
            case 0x86 if len(stack) >= 2:
                second = stack.pop()
                stack[-1] = (stack[-1], second)
                position += 1
            case 0x62:  # b
                machine.build()
                position = machine.built(position + 1)
            case 0x7D:  # }
                stack.append({})
                position += 1
            case 0x75:  # u
                pairs, machine.stack = stack, machine.marks.pop()
                stack = machine.stack
                machine.set_items(pairs)
                position += 1
                if batches is not None and len(machine.marks) == begun[2] and begun[0] >= machine.base:
                    batches.keep(machine, begun[0] - machine.base, begun[1], position, pairs)
            case 0x58 if (end := position + 5 + _uint(data, position + 1)[0]) <= len(data):  # X
                stack.append(data[position + 5 : end].decode("utf-8", "surrogatepass"))
                position = end
            case 0x74:  # t
                values = tuple(stack)
                machine.stack = stack = machine.marks.pop()
                stack.append(values)
                position += 1
            case 0x51:  # Q
                stack.append(machine.resolve(stack.pop()))
                position += 1
            case 0x89:
                stack.append(False)
                position += 1
            case 0x8C if (end := position + 2 + data[position + 1]) <= len(data):
                stack.append(data[position + 2 : end].decode("utf-8", "surrogatepass"))
                position = end
            case 0x4A:  # J
                stack.append(_int(data, position + 1)[0])
                position += 5
            case 0x71 if data[position + 1] == len(memo) and not machine.memo_beyond:  # q
                memo.append(stack[-1])
                position += 2
            case _:
                machine.position = position
                if step(machine):
                    break
                data, position, stack = machine.data, machine.position, machine.stack
                last = len(data) - _OPERAND_BYTES
    else:
        raise PickleError("it is too long to be a description of tensors")
    value = machine.stack.pop()
    if machine.stack or machine.marks:  # a byte was lost where something else should have been taken from it
        raise PickleError("it ends in the middle of a value")
    return value


def step(machine: Machine) -> bool:
    """Execute one instruction by the table; return whether it is STOP."""
    opcode = machine.take(1)[0]
    if opcode == STOP:
        return True
    action = ACTIONS.get(opcode)
    if action is None:
        raise PickleError(f"it uses the instruction {bytes([opcode])!r}, which torch never writes")
    action(machine)
    return False
