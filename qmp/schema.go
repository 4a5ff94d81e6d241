package qmp

import (
	"context"
	"strings"
)

// A Schema says which commands a QEMU has and which arguments these take. It is one string of 11 kB (7.2), so that a
// program may keep one per QEMU. It can be used from several goroutines.
type Schema struct {
	// text has a line per command: newline, name, zero, and each argument followed by zero. QEMU's names have neither
	// zeros nor newlines, so that finding a name with its delimiters finds just that name. A search takes less than
	// what building and holding a map of 230 commands would ever give back.
	text string
}

// QuerySchema asks QEMU to describe itself. The reply is large (207 kB on 7.2) and takes 15 ms, most of them in QEMU's
// main loop: ask once per connection at most, and keep the Schema or the answers that matter. Errors are those of
// [Conn.Execute].
func (c *Conn) QuerySchema(ctx context.Context) (*Schema, error) {
	var entries []schemaEntry
	if err := c.Execute(ctx, "query-qmp-schema", nil, &entries); err != nil {
		return nil, err
	}
	return newSchema(entries), nil
}

// HasCommand reports whether QEMU has that command.
func (s *Schema) HasCommand(name string) bool {
	_, ok := s.args(name)
	return ok
}

// HasArg reports whether that command exists and takes that argument. When the arguments are a union (as those of
// blockdev-add, by driver), an argument of any branch counts.
func (s *Schema) HasArg(command, arg string) bool {
	args, ok := s.args(command)
	return ok && valid(arg) && strings.Contains(args, "\x00"+arg+"\x00")
}

// args returns the arguments of a command, each between zeros.
func (s *Schema) args(command string) (string, bool) {
	if !valid(command) {
		return "", false
	}
	begin := "\n" + command + "\x00"
	i := strings.Index(s.text, begin)
	if i < 0 {
		return "", false
	}
	line, _, _ := strings.Cut(s.text[i+len(begin)-1:], "\n")
	return line, true
}

func valid(name string) bool { return name != "" && !strings.ContainsAny(name, "\n\x00") }

// A schemaEntry is a SchemaInfo of qapi/introspect.json, as far as arguments need it.
type schemaEntry struct {
	Name     string `json:"name"`
	MetaType string `json:"meta-type"`
	ArgType  string `json:"arg-type"`
	Members  []struct {
		Name string `json:"name"`
	} `json:"members"`
	Variants []struct {
		Type string `json:"type"`
	} `json:"variants"`
}

func newSchema(entries []schemaEntry) *Schema {
	types := make(map[string]*schemaEntry, len(entries))
	for i := range entries {
		types[entries[i].Name] = &entries[i]
	}
	var text strings.Builder
	for i := range entries {
		if entries[i].MetaType != "command" {
			continue
		}
		text.WriteString("\n" + entries[i].Name + "\x00")
		seen := make(map[string]bool) // names written, and types visited, which have other names: those are numbers
		writeMembers(&text, types, entries[i].ArgType, seen)
	}
	return &Schema{text: strings.Clone(text.String())}
}

// writeMembers writes the members of an object type and of its variants.
func writeMembers(text *strings.Builder, types map[string]*schemaEntry, name string, seen map[string]bool) {
	t := types[name]
	if t == nil || seen["type "+name] {
		return
	}
	seen["type "+name] = true
	for _, m := range t.Members {
		if !seen[m.Name] {
			seen[m.Name] = true
			text.WriteString(m.Name + "\x00")
		}
	}
	for _, v := range t.Variants {
		writeMembers(text, types, v.Type, seen)
	}
}
