// Package state keeps small facts in one local file, so that they survive a crash of the program, a kill at any
// instruction and a power failure.
//
// # What it is
//
// A journal: a file of JSON lines that is only ever appended to. Every line says that a key has a value from now on;
// the value null says that the key is gone. The current state is what the lines, read in their order, leave behind,
// and it is held in memory. An operator reads the file with cat and jq:
//
//	{"seq":1,"key":"","value":{"format":"trayd-state","version":1},"crc":"0c3ea9ff"}
//	{"seq":2,"key":"drive/vm1/cd0","value":{"loaded":"image:debian"},"crc":"1a2b3c4d"}
//	{"seq":3,"key":"drive/vm2/cd0","value":null,"with":2,"crc":"9d7710ab"}
//
// The first line is a header that names the format (its key is empty, which no caller's key can be). seq grows by
// exactly one from line to line. crc is the CRC-32C (Castagnoli) of the bytes of the line before `,"crc":`. with
// stands only in a line that was written together with the one before it, and names the first line of that write: a
// line without it proves that everything before it was durable.
//
// # What it promises
//
//   - When [Journal.Put], [Journal.PutReserved] or [Journal.Delete] returns nil, the change survives a power failure.
//     Callers that wait at the same moment share one write and one fdatasync.
//   - A change that returns an error is not in the state, with one exception: after a failed fdatasync nobody knows,
//     and the journal then refuses every further write ([ErrFailed]) until it is opened anew.
//   - A last line that a crash tore is dropped when the journal is opened; damage anywhere else is refused with the
//     line number ([DamageError]) and never repaired silently.
//   - An intent that was accepted has room for its outcome: 64 KiB behind the end of the file are allocated ahead, and
//     Put refuses, before it writes anything, when that reserve cannot be kept. PutReserved may use it up.
//   - The file stays small: once it is larger than 1 MiB and than four times its live data it is rewritten, and a
//     crash at any step of that leaves the old file or the new one.
//   - One writer: a lock file beside the journal is held for as long as the journal is open.
//
// # What it leaves to others
//
// What keys and values mean. Transactions over several keys (put what must change together under one key). Mirroring:
// a file that the disk has lost is lost.
package state
