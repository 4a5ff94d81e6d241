package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is everything that is wrong in a file.
type Error struct {
	Path     string
	Problems []Problem // by line; at least one
}

// Problem is one mistake.
type Problem struct {
	Line   int    // counted from 1; 0 when it isn't known
	Key    string // with its table, such as api.socket; empty for a mistake of TOML itself
	Detail string // what is wrong, with the value, and what is allowed
}

// Error is one line per mistake, in the form that compilers use and editors know.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.in(e.Path)
	}
	return strings.Join(lines, "\n")
}

func (p Problem) in(path string) string {
	if p.Line > 0 {
		path = fmt.Sprintf("%s:%d", path, p.Line)
	}
	if p.Key != "" {
		return fmt.Sprintf("%s: %s: %s", path, p.Key, p.Detail)
	}
	return path + ": " + p.Detail
}

func sortByLine(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
}
