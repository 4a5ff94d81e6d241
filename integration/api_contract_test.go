//go:build integration

package integration_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

type object = map[string]any

// contract is the API's description, and which of it was seen.
type contract struct {
	t       testing.TB
	doc     object
	schemas map[string]*jsonschema.Schema
	seen    map[string]bool // "GET /v1/vms/{vm} 200"; "... problem" for a refusal
}

// described reads the description that a trayd serves.
func described(r *rig) *contract {
	r.t.Helper()
	got := r.local().ask("GET", "/v1/openapi.yaml", "")
	require.Equal(r.t, http.StatusOK, got.status)
	var y any
	require.NoError(r.t, yaml.Unmarshal(got.body, &y))
	b, err := json.Marshal(y)
	require.NoError(r.t, err)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b)) // numbers as the validator has them
	require.NoError(r.t, err)
	c := &contract{t: r.t, doc: doc.(object), schemas: make(map[string]*jsonschema.Schema), seen: make(map[string]bool)}
	strict(c.doc["components"].(object)["schemas"])
	return c
}

// strict has objects whose members the description names have no others.
func strict(v any) {
	switch v := v.(type) {
	case object:
		if _, named := v["properties"].(object); named && v["additionalProperties"] == nil {
			v["additionalProperties"] = false
		}
		for _, e := range v {
			strict(e)
		}
	case []any:
		for _, e := range v {
			strict(e)
		}
	}
}

// apiRoute is a method and a path of the description.
type apiRoute struct {
	method, path, role string
	answers            object
}

func (a apiRoute) String() string { return a.method + " " + a.path }

// routes are all of them.
func (c *contract) routes() []apiRoute {
	var all []apiRoute
	for path, item := range c.doc["paths"].(object) {
		for method, op := range item.(object) {
			if o, ok := op.(object); ok {
				all = append(all, apiRoute{strings.ToUpper(method), path, o["x-role"].(string), o["responses"].(object)})
			}
		}
	}
	slices.SortFunc(all, func(a, b apiRoute) int { return strings.Compare(a.String(), b.String()) })
	return all
}

var parameter = regexp.MustCompile(`\{\w+\}`)

// route is the one that a request is of: a word in a path is before a parameter.
func (c *contract) route(method, path string) (found apiRoute) {
	c.t.Helper()
	path, _, _ = strings.Cut(path, "?")
	for _, r := range c.routes() {
		form := "^" + parameter.ReplaceAllString(r.path, "[^/]+") + "$"
		if r.method == method && regexp.MustCompile(form).MatchString(path) &&
			(found.path == "" || strings.Count(r.path, "{") < strings.Count(found.path, "{")) {
			found = r
		}
	}
	require.NotEmpty(c.t, found.path, "the description has no %s %s", method, path)
	return found
}

// check compares an answer with the description.
func (c *contract) check(method, path string, got answer) {
	c.t.Helper()
	r := c.route(method, path)
	where := fmt.Sprintf("%s %s: %d %s", method, path, got.status, got.body)
	key := r.String() + " " + strconv.Itoa(got.status)
	a, ok := r.answers[strconv.Itoa(got.status)].(object)
	if got.status >= 400 {
		key, a, ok = r.String()+" problem", c.resolve(r.answers["default"].(object)), true
	}
	require.True(c.t, ok, "the description doesn't have that status: %s", where)
	c.seen[key] = true
	content, _ := a["content"].(object)
	if content == nil {
		if got.status != http.StatusSwitchingProtocols {
			require.Empty(c.t, got.body, where)
		}
		return
	}
	kind, _, _ := strings.Cut(got.header.Get("Content-Type"), ";")
	media, ok := content[kind].(object)
	require.True(c.t, ok, "the description doesn't have %q: %s", kind, where)
	if strings.HasSuffix(kind, "json") {
		c.valid(key, media["schema"].(object), got.body, where)
	}
}

func (c *contract) resolve(v object) object {
	name, ok := v["$ref"].(string)
	if !ok {
		return v
	}
	at := any(c.doc)
	for _, step := range strings.Split(strings.TrimPrefix(name, "#/"), "/") {
		at = at.(object)[step]
	}
	return at.(object)
}

// valid compares JSON with a schema of the description.
func (c *contract) valid(key string, schema object, body []byte, where string) {
	c.t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	require.NoError(c.t, err, where)
	require.NoError(c.t, c.compiled(key, schema).Validate(v), where)
}

func (c *contract) compiled(key string, schema object) *jsonschema.Schema {
	c.t.Helper()
	if c.schemas[key] == nil {
		whole := maps.Clone(schema)
		whole["components"] = c.doc["components"]
		compiler := jsonschema.NewCompiler()
		compiler.DefaultDraft(jsonschema.Draft2020)
		compiler.AssertFormat()
		require.NoError(c.t, compiler.AddResource("trayd.json", whole))
		s, err := compiler.Compile("trayd.json")
		require.NoError(c.t, err, key)
		c.schemas[key] = s
	}
	return c.schemas[key]
}

// sound demands that the description is one by OpenAPI 3.1, as far as it goes: what has to be
// there is, operations have different ids, parameters in paths are declared, references lead
// somewhere, and every schema is one.
func (c *contract) sound() {
	t := c.t
	t.Helper()
	require.Equal(t, "3.1.0", c.doc["openapi"])
	info := c.doc["info"].(object)
	require.NotEmpty(t, info["title"])
	require.NotEmpty(t, info["version"])
	schemes := c.doc["components"].(object)["securitySchemes"].(object)
	for _, one := range c.doc["security"].([]any) {
		for name := range one.(object) {
			require.Contains(t, schemes, name)
		}
	}
	ids := make(map[string]bool)
	for path, item := range c.doc["paths"].(object) {
		require.True(t, strings.HasPrefix(path, "/"), path)
		var declared []string
		all, _ := item.(object)["parameters"].([]any)
		for _, p := range all {
			p := p.(object)
			require.Equal(t, "path", p["in"], path)
			require.Equal(t, true, p["required"], path)
			require.NotEmpty(t, p["description"], "%s: %s", path, p["name"])
			declared = append(declared, "{"+p["name"].(string)+"}")
		}
		require.ElementsMatch(t, parameter.FindAllString(path, -1), declared, path)
		for method, op := range item.(object) {
			if method == "parameters" {
				continue
			}
			require.Contains(t, []string{"get", "put", "post", "delete", "patch"}, method)
			c.operation(method+" "+path, op.(object), ids)
		}
	}
	c.references(c.doc)
	for name, s := range c.doc["components"].(object)["schemas"].(object) {
		c.compiled("schema "+name, s.(object))
	}
}

func (c *contract) operation(where string, op object, ids map[string]bool) {
	id, _ := op["operationId"].(string)
	require.NotEmpty(c.t, id, where)
	require.False(c.t, ids[id], "%s: two operations are called %s", where, id)
	ids[id] = true
	params, _ := op["parameters"].([]any)
	for _, p := range params {
		require.Contains(c.t, []any{"query", "header"}, p.(object)["in"], where)
		require.NotNil(c.t, p.(object)["schema"], where)
	}
	answers := op["responses"].(object)
	require.Greater(c.t, len(answers), 1, where)
	for status, a := range answers {
		require.Regexp(c.t, `^([1-5][0-9][0-9]|default)$`, status, where)
		require.NotEmpty(c.t, c.resolve(a.(object))["description"], "%s %s", where, status)
	}
}

func (c *contract) references(v any) {
	switch v := v.(type) {
	case object:
		if name, ok := v["$ref"].(string); ok {
			require.NotNil(c.t, c.resolve(v), name)
		}
		for _, e := range v {
			c.references(e)
		}
	case []any:
		for _, e := range v {
			c.references(e)
		}
	}
}

// unseen is what of the description no answer was compared with.
func (c *contract) unseen() []string {
	var left []string
	for _, r := range c.routes() {
		for status := range r.answers {
			key := r.String() + " " + strings.Replace(status, "default", "problem", 1)
			if !c.seen[key] {
				left = append(left, key)
			}
		}
	}
	slices.Sort(left)
	return left
}
