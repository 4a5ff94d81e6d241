// Package rendered tells whether a committed document was made by the template of this commit.
package rendered

import (
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
)

// By returns an error where a document lacks, or has in another order, what a template always
// writes: its text outside of conditions and loops.
func By(tmpl, document string) error {
	t, err := template.New("document").Parse(tmpl)
	if err != nil {
		return err
	}
	rest := document
	for i, n := range t.Root.Nodes {
		text, ok := n.(*parse.TextNode)
		if !ok {
			continue
		}
		if i == len(t.Root.Nodes)-1 && !strings.HasSuffix(rest, string(text.Text)) {
			return fmt.Errorf("it doesn't end with %q", text.Text)
		}
		_, after, found := strings.Cut(rest, string(text.Text))
		if !found {
			return fmt.Errorf("it lacks, or has too early: %q", text.Text)
		}
		rest = after
	}
	return nil
}
