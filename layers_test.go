// Package trayd_test keeps the rules of the whole module that no compiler keeps: which
// package may know which, and that none has a life of its own.
package trayd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/trayd/trayd/"

// pkg is what `go list` says of a package.
type pkg struct {
	ImportPath, Dir string
	Standard        bool
	GoFiles         []string
	Imports, Deps   []string
}

// list asks go for packages, by the name that they have in this module.
func list(t *testing.T, args ...string) map[string]pkg {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Standard,GoFiles,Imports,Deps"}, args...)...).Output()
	require.NoError(t, err)
	all := make(map[string]pkg)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else {
			require.NoError(t, err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
}

// ours are those of the paths that are of this module.
func ours(paths []string) []string {
	var all []string
	for _, p := range paths {
		if name, ok := strings.CutPrefix(p, module); ok {
			all = append(all, name)
		}
	}
	return all
}

// TestLibrariesStandAlone: whoever takes one of them gets no agent with it.
func TestLibrariesStandAlone(t *testing.T) {
	may := map[string][]string{ // know which others
		"qmp": nil, "qmp/qmptest": nil,
		"blockdev": {"qmp"}, "blockdev/volume": nil,
		"iso": nil, "state": nil, "systemd": nil,
	}
	for name, p := range list(t, "./...") {
		if others, library := may[name]; library {
			require.ElementsMatch(t, others, ours(p.Deps), name)
			delete(may, name)
			continue
		}
		first, _, _ := strings.Cut(name, "/")
		if name+"/" == module {
			continue // this package
		}
		require.Contains(t, []string{"cmd", "internal", "integration"}, first, "%s: a new library says here what it may know", name)
	}
	require.Empty(t, may, "libraries that are no more")
}

// TestLayers: a request goes down through the layers once.
func TestLayers(t *testing.T) {
	all := list(t, "./...")
	// Above the agent nobody passes it by, and it knows nobody above.
	above := []string{"internal/api", "internal/page", "internal/metrics", "internal/audit", "internal/hook", "internal/webhook"}
	below := []string{"qmp", "blockdev", "blockdev/volume", "state", "internal/library"}
	for _, name := range above {
		require.Contains(t, all, name)
		for _, known := range ours(all[name].Imports) {
			require.NotContains(t, below, known, "%s passes the agent by", name)
		}
	}
	for _, name := range []string{"internal/agent", "internal/library", "internal/machine"} {
		for _, known := range ours(all[name].Deps) {
			require.NotContains(t, append(above, "internal/config"), known, "%s knows who is above it", name)
		}
	}
	// The vocabulary is below everybody.
	require.Empty(t, ours(all["internal/wire"].Deps))
}

// TestPrograms: the operator's command is a client, which starts in a moment; what is
// shipped has no test's tools in it.
func TestPrograms(t *testing.T) {
	all := list(t, "./cmd/...")
	require.ElementsMatch(t, []string{"internal/wire", "iso"}, ours(all["cmd/trayctl"].Deps))
	require.NotContains(t, all["cmd/trayctl"].Deps, "net/http")
	for name, p := range all {
		for _, of := range []string{"testing", "go.uber.org/goleak", "github.com/stretchr/testify/require", module + "internal/qemutest", module + "qmp/qmptest"} {
			require.NotContains(t, p.Deps, of, name)
		}
	}
}

// TestNoLifeOfItsOwn: a package that is imported does nothing by itself and keeps nothing:
// no init, and no variable of a package's that any function changes.
func TestNoLifeOfItsOwn(t *testing.T) {
	for name, p := range list(t, "./...") {
		found := ownLife(t, p)
		require.Empty(t, found, name)
	}
	source := filepath.Join(t.TempDir(), "a.go")
	require.NoError(t, os.WriteFile(source, []byte(`package a
import "net/http"
var kept, shadowed int
var words = map[string]int{}
var constant = http.MethodGet
func init() {}
func f() { kept++; words[constant] = 1; shadowed := 1; shadowed++; var p = &kept; _ = p }
`), 0o644))
	require.Equal(t, []string{"init", "kept", "words", "kept"}, ownLife(t, pkg{Dir: filepath.Dir(source), GoFiles: []string{"a.go"}}), "the test sees them")
}

// ownLife finds functions named init, and a package's variables that are assigned to, or
// whose address is taken.
func ownLife(t *testing.T, p pkg) (found []string) {
	t.Helper()
	files := token.NewFileSet()
	var parsed []*ast.File
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		parsed = append(parsed, f)
	}
	// What other packages have isn't looked up: names of this one are all that counts.
	uses := make(map[*ast.Ident]types.Object)
	check := types.Config{Error: func(error) {}}
	checked, _ := check.Check(p.ImportPath, files, parsed, &types.Info{Uses: uses}) // with errors, for that reason
	note := func(e ast.Expr) {
		if id := root(e); id != nil && uses[id] != nil && uses[id].Parent() == checked.Scope() {
			if _, variable := uses[id].(*types.Var); variable {
				found = append(found, id.Name)
			}
		}
	}
	for _, f := range parsed {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					found = append(found, "init")
				}
			case *ast.AssignStmt:
				for _, e := range n.Lhs {
					note(e)
				}
			case *ast.IncDecStmt:
				note(n.X)
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					note(n.X)
				}
			}
			return true
		})
	}
	return found
}

// TestLeaksAreLookedFor: who starts goroutines has tests that end with none left.
func TestLeaksAreLookedFor(t *testing.T) {
	for name, p := range list(t, "./...") {
		tests, err := filepath.Glob(filepath.Join(p.Dir, "*_test.go"))
		require.NoError(t, err)
		if len(tests) == 0 || !starts(t, p) {
			continue
		}
		looked := slices.ContainsFunc(tests, func(path string) bool {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			return bytes.Contains(text, []byte("goleak."))
		})
		require.True(t, looked, "%s starts goroutines, and no TestMain of its tests is goleak's", name)
	}
}

// starts reports whether a package has a go statement.
func starts(t *testing.T, p pkg) (found bool) {
	t.Helper()
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			_, is := n.(*ast.GoStmt)
			found = found || is
			return true
		})
	}
	return found
}

// root is the variable of an expression like v.field[i].
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// TestAnyQEMU: what integration/any-qemu leaves out is there to be left out.
func TestAnyQEMU(t *testing.T) {
	text, err := os.ReadFile("integration/any-qemu")
	require.NoError(t, err)
	tests := testsOf(t, "integration")
	n := 0
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || strings.HasPrefix(line, "#"):
			continue
		case strings.HasPrefix(words[0], "./"):
			require.NotEmpty(t, testsOf(t, words[0]), "%s has no tests", words[0])
		default:
			require.Contains(t, tests, words[0], "no such test in ./integration")
		}
		n++
	}
	require.Positive(t, n)
}

// testsOf are the names of the tests in a folder, whatever their build tags.
func testsOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	require.NoError(t, err)
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				names = append(names, fn.Name.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}
