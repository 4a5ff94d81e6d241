package api

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/wire"
)

var update = flag.Bool("update", false, "write openapi.yaml anew")

// TestOpenAPI: the description is what the routes and the types say: `go test ./internal/api
// -run TestOpenAPI -update` writes it.
func TestOpenAPI(t *testing.T) {
	d := newDescriber(t)
	var b bytes.Buffer
	b.WriteString("# Written by `go test ./internal/api -run TestOpenAPI -update` from the routes and their types.\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	require.NoError(t, e.Encode(d.document()))
	if *update {
		require.NoError(t, os.WriteFile("openapi.yaml", b.Bytes(), 0o644))
		return
	}
	is, err := os.ReadFile("openapi.yaml")
	require.NoError(t, err)
	require.Equal(t, b.String(), string(is), "write it anew with -update")
}

// allRoutes are those of a server that has everything.
func allRoutes(t *testing.T) []route {
	s := New(context.Background(), Options{Log: slog.New(slog.DiscardHandler), Access: Access{Tokens: new(access.Tokens)}, Page: http.NotFoundHandler(),
		Healthy: func(context.Context) error { return nil }, Ready: func() error { return nil }, Metrics: http.NotFoundHandler()})
	return s.table()
}

// describer makes the description of Go's types.
type describer struct {
	t       *testing.T
	docs    map[string]map[string]*typeDoc // by package and type
	schemas map[string]any
}

// typeDoc is what a type's source says of it.
type typeDoc struct {
	about  string
	fields map[string]string
	values []any // of its constants
}

// sources are the packages whose types go over the API.
var sources = map[string]string{"wire": "../wire", "iso": "../../iso", "agent": "../agent", "api": ".", "blockdev": "../../blockdev", "volume": "../../blockdev/volume"}

func newDescriber(t *testing.T) *describer {
	d := &describer{t: t, docs: make(map[string]map[string]*typeDoc), schemas: make(map[string]any)}
	for name, dir := range sources {
		d.docs[name] = readDocs(t, dir)
	}
	return d
}

func readDocs(t *testing.T, dir string) map[string]*typeDoc {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	set := token.NewFileSet()
	all := make(map[string]*typeDoc)
	var parsed []*ast.File
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		p, err := parser.ParseFile(set, f, nil, parser.ParseComments)
		require.NoError(t, err)
		parsed = append(parsed, p)
	}
	for _, p := range parsed {
		for _, decl := range p.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range g.Specs {
				if s, ok := spec.(*ast.TypeSpec); ok {
					all[s.Name.Name] = docOf(s, g.Doc)
				}
			}
		}
	}
	for _, p := range parsed {
		constants(p, all)
	}
	return all
}

func docOf(s *ast.TypeSpec, about *ast.CommentGroup) *typeDoc {
	if s.Doc != nil {
		about = s.Doc
	}
	d := &typeDoc{about: text(about), fields: make(map[string]string)}
	if st, ok := s.Type.(*ast.StructType); ok {
		for _, f := range st.Fields.List {
			for _, n := range f.Names {
				d.fields[n.Name] = text(f.Doc)
				if d.fields[n.Name] == "" {
					d.fields[n.Name] = text(f.Comment)
				}
			}
		}
	}
	return d
}

func text(c *ast.CommentGroup) string {
	if c == nil {
		return ""
	}
	return strings.Join(strings.Fields(c.Text()), " ")
}

// constants notes the values of string constants with the type that they are declared with.
func constants(p *ast.File, all map[string]*typeDoc) {
	for _, decl := range p.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, spec := range g.Specs {
			v := spec.(*ast.ValueSpec)
			name, ok := v.Type.(*ast.Ident)
			if !ok || all[name.Name] == nil {
				continue
			}
			for _, x := range v.Values {
				if lit, ok := x.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					s, err := strconv.Unquote(lit.Value)
					if err == nil && !slices.Contains(all[name.Name].values, any(s)) {
						all[name.Name].values = append(all[name.Name].values, s)
					}
				}
			}
		}
	}
}

type object = map[string]any

// document is the whole.
func (d *describer) document() object {
	paths := make(object)
	for _, r := range allRoutes(d.t) {
		if r.id == "" {
			continue // the page
		}
		item, ok := paths[r.path].(object)
		if !ok {
			item = make(object)
			if p := parameters(r.path); p != nil {
				item["parameters"] = p
			}
			paths[r.path] = item
		}
		item[strings.ToLower(r.method)] = d.operation(r)
	}
	d.schema(reflect.TypeFor[wire.Problem]())
	d.schema(reflect.TypeFor[wire.Event]())
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title": "trayd", "version": "1", "license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "Discs in the CD drives of QEMU machines. On the unix socket the kernel says who asks; over TLS a token, a client certificate or a session's cookie does. " +
				"An error is a Problem with a stable code, the cause, and what to do next. POST and PATCH take an Idempotency-Key: the same request with the same key is answered as the first one was, for a day or until trayd is started anew.",
		},
		"servers":    []any{object{"url": "/", "description": "this host"}},
		"security":   []any{object{}, object{"token": []any{}}, object{"session": []any{}}, object{"certificate": []any{}}},
		"paths":      paths,
		"components": object{"schemas": d.schemas, "responses": object{"Problem": problem()}, "securitySchemes": securitySchemes()},
	}
}

func problem() object {
	return object{"description": "What was tried, what stopped it, and what to do next", "content": object{"application/problem+json": object{"schema": ref("Problem")}}}
}

func securitySchemes() object {
	return object{
		"token":       object{"type": "http", "scheme": "bearer", "description": "of `trayctl token create`"},
		"session":     object{"type": "apiKey", "in": "cookie", "name": sessionCookie},
		"certificate": object{"type": "mutualTLS", "description": "signed by api.client_ca_file, with a role in [[client]]"},
	}
}

var inPath = regexp.MustCompile(`\{(\w+)\}`)

// meanings are those of what stands in paths.
var meanings = map[string]string{
	"vm": "a machine's name", "drive": "a drive's name; `-` is the machine's only one", "pool": "a pool's name; `-` is the one that has the image, and the default one for a new image",
	"image": "an image's name", "id": "an operation's id", "token": "a token's id or name", "ui": "the id of POST /v1/ui", "namespace": "anything",
}

func parameters(path string) []any {
	var all []any
	for _, m := range inPath.FindAllStringSubmatch(path, -1) {
		all = append(all, object{"name": m[1], "in": "path", "required": true, "description": meanings[m[1]], "schema": object{"type": "string"}})
	}
	return all
}

func (d *describer) operation(r route) object {
	op := object{"operationId": r.id, "summary": r.summary, "x-role": r.role.String()}
	if r.role == access.None {
		op["security"] = []any{object{}}
	}
	var params []any
	for _, q := range r.query {
		params = append(params, object{"name": q.name, "in": "query", "description": q.about, "schema": object{"type": q.kind}})
	}
	if r.method == http.MethodPost || r.method == http.MethodPatch {
		params = append(params, object{"name": "Idempotency-Key", "in": "header", "description": "at most 255 characters", "schema": object{"type": "string", "maxLength": maxRepeatKey}})
	}
	if params != nil {
		op["parameters"] = params
	}
	if r.body != nil {
		op["requestBody"] = object{"content": d.content(r.body)}
	}
	responses := object{"default": object{"$ref": "#/components/responses/Problem"}}
	for _, a := range r.answers {
		answer := object{"description": http.StatusText(a.status)}
		if a.body != nil {
			answer["content"] = d.content(a.body)
		}
		responses[strconv.Itoa(a.status)] = answer
	}
	op["responses"] = responses
	return op
}

func (d *describer) content(body any) object {
	if kind, ok := body.(contentType); ok {
		schema := object{}
		if kind == eventStream {
			schema = object{"type": "string", "description": "the data of each event is an Event"}
		}
		return object{string(kind): object{"schema": schema}}
	}
	return object{"application/json": object{"schema": d.schema(reflect.TypeOf(body))}}
}

func ref(name string) object { return object{"$ref": "#/components/schemas/" + name} }

// schema describes a type; one with a name is described once.
func (d *describer) schema(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[time.Duration]():
		return object{"type": "integer", "description": "nanoseconds"}
	case reflect.TypeFor[wire.Size]():
		return object{"type": []any{"integer", "string"}, "description": "bytes; a request may have 20GiB and the like"}
	case reflect.TypeFor[json.RawMessage]():
		return object{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.schema(t.Elem())
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return d.word(t)
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "contentEncoding": "base64"}
		}
		return object{"type": "array", "items": d.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Struct:
		return d.structure(t)
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	}
	return object{"type": "integer"}
}

// word is a string, of which a named one may be one of several words.
func (d *describer) word(t reflect.Type) object {
	known := d.docs[packageOf(t)][t.Name()]
	if known == nil || len(known.values) == 0 || t == reflect.TypeFor[wire.Code]() { // codes are added to, also by prefixes
		return object{"type": "string"}
	}
	if d.schemas[t.Name()] == nil {
		d.schemas[t.Name()] = object{"type": "string", "enum": known.values, "description": known.about}
	}
	return ref(t.Name())
}

func packageOf(t reflect.Type) string { return filepath.Base(t.PkgPath()) }

func (d *describer) structure(t reflect.Type) object {
	if t.Name() != "" {
		name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
		if d.schemas[name] == nil {
			s := object{"type": "object"}
			d.schemas[name] = s // it may have itself in it
			d.fill(s, t)
			if known := d.docs[packageOf(t)][t.Name()]; known != nil && known.about != "" {
				s["description"] = known.about
			}
		}
		return ref(name)
	}
	s := object{"type": "object"}
	d.fill(s, t)
	return s
}

// fill describes the fields.
func (d *describer) fill(s object, t reflect.Type) {
	properties, required := make(object), []any{}
	d.fields(t, properties, &required)
	s["properties"] = properties
	if len(required) > 0 {
		s["required"] = required
	}
}

func (d *describer) fields(t reflect.Type, properties object, required *[]any) {
	known := d.docs[packageOf(t)][t.Name()]
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			d.fields(f.Type, properties, required)
			continue
		case !f.IsExported(), name == "-":
			continue
		case name == "":
			name = f.Name
		}
		p := d.schema(f.Type)
		if known != nil && known.fields[f.Name] != "" {
			described := object{"description": known.fields[f.Name]}
			for k, v := range p {
				described[k] = v
			}
			p = described
		}
		properties[name] = p
		asked := t == reflect.TypeFor[wire.Definition]() && f.Type.Kind() == reflect.Bool // with a default, where it is asked for
		if !strings.Contains(options, "omit") && !asked {
			*required = append(*required, name)
		}
	}
}
