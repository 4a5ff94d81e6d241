// Package audit keeps a log of changes: who, what, where, with which outcome, how long.
//
// A Handler stands around the program's own slog.Handler. Every record passes through to that;
// one that has the attribute audit=true is also written as a line of JSON to a file, and told
// to an observer, which counts. So a change is said once, where it is made, and is in the
// journal and in the file alike.
//
// The file outlives rotation: it is opened for appending, and before each line it is looked
// whether the path still means it. When it can't be written, which the journal says once, the
// change goes on, and its line is in the journal alone.
package audit
