"""Rows of TFRecord files that hold examples of named features, as RichHF comes.

A file is a row of records: length (8 bytes), its checksum (4), the record, its checksum (4). A
record is a `tf.train.Example`: a map from names to lists of bytes, floats or integers, in the wire
format of protobuf. https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmalign.data.errors import DatasetError
from mmalign.data.fields import Row
from mmalign.data.rows import BrokenRow

HEAD, TAIL = 12, 4
"""Bytes before and after a record."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Protobuf's wire types."""


class TFRecordRows:
    """Rows by index; the files are gone through once, and records read when they are asked for.

    A feature with one value is that value, else a list; bytes stay bytes.
    """

    def __init__(self, files: Sequence[Path], root: Path | None) -> None:
        self.files, self.root = list(files), root
        self._file, self._start, self._length = array("H"), array("q"), array("q")
        for number, file in enumerate(self.files):
            for start, length in _records(file):
                self._file.append(number)
                self._start.append(start)
                self._length.append(length)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self[0]) if len(self) else ()

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> Row:
        with self.files[self._file[index]].open("rb") as file:
            file.seek(self._start[index])
            record = file.read(self._length[index])
        try:
            return parsed(record)
        except (ValueError, IndexError, struct.error) as error:
            return BrokenRow(f"the record is no example of named features: {error}")

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> Iterator[Any]:
        return (row.get(name) for row in self)


def _records(file: Path) -> Iterator[tuple[int, int]]:
    """Where each record starts, and how long it is."""
    end, place = file.stat().st_size, 0
    with file.open("rb") as opened:
        while place < end:
            opened.seek(place)
            head = opened.read(HEAD)
            if len(head) == HEAD and masked_crc(head[:8]) != int.from_bytes(head[8:], "little"):
                raise DatasetError(f"{file} is not a TFRecord file, or is damaged at byte {place}")
            length = int.from_bytes(head[:8], "little")
            if len(head) < HEAD or place + HEAD + length + TAIL > end:
                raise DatasetError(
                    f"{file} ends within a record", hint="it may be cut short: download it again."
                )
            yield place + HEAD, length
            place += HEAD + length + TAIL


def masked_crc(content: bytes) -> int:
    """TFRecord's checksum: CRC-32C, turned right by 15 bits, plus a constant."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """Castagnoli's cyclic redundancy check, RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def parsed(record: bytes) -> Row:
    """The features of an example. Raises ValueError, IndexError or struct.error for another."""
    row: Row = {}
    for _, features in _fields(record):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            values = _values(parts[2]) if parts.get(2) else []
            row[parts[1].decode()] = values[0] if len(values) == 1 else values
    return row


def _values(feature: bytes) -> list[Any]:
    """Of a list of bytes (field 1), floats (2) or integers (3); the latter two may be packed."""
    ((kind, content),) = _fields(feature)
    if kind == 1:
        return [value for _, value in _fields(content)]
    packed = b"".join(value for _, value in _fields(content))
    if kind == 2:
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    found, place = [], 0
    while place < len(packed):
        value, place = _varint(packed, place)
        found.append(value - 2**64 if value >= 2**63 else value)
    return found


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and raw content of each field."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        match key & 7:
            case wire if wire == VARINT:
                end = _varint(message, place)[1]
            case wire if wire == FIXED64:
                end = place + 8
            case wire if wire == FIXED32:
                end = place + 4
            case wire if wire == BYTES:
                length, place = _varint(message, place)
                end = place + length
            case wire:
                raise ValueError(f"wire type {wire}")
        if end > len(message):
            raise ValueError("a field is longer than its message")
        yield key >> 3, message[place:end]
        place = end


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
