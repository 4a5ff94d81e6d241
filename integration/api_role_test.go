//go:build integration

package integration_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// Groups of any Debian (base-passwd), which stand for trayd and trayd-view.
const (
	nobody = 65534
	daemon = 1
	games  = 60
)

// TestWhoMay: each route lets in those that the description says, however they come, and
// nobody else; who is refused has changed nothing.
func TestWhoMay(t *testing.T) {
	r := newRig(t)
	pool := filepath.Join(r.dir, "pool")
	require.NoError(t, os.Mkdir(pool, 0o755))
	ours, theirs := newAuthority(t, r.dir, "ours"), newAuthority(t, r.dir, "theirs")
	at := r.secured("group = \"daemon\"\nview_group = \"games\"\nclient_ca_file = \"" + ours.file() + "\"\n")
	r.extra = "[[pool]]\nname = \"local\"\ntype = \"dir\"\npath = \"" + pool + "\"\n[[client]]\nname = \"edge\"\nrole = \"change\"\n"
	r.start("")
	r.ready()
	a := r.local()
	disc, err := os.ReadFile(r.disc("DEBIAN"))
	require.NoError(t, err)
	a.want(201, "PUT", "/v1/pools/local/images/disc", string(disc))
	r.echoing("m1", "--disk", "1M")
	way := decoded[wire.UI](t, a.want(201, "POST", "/v1/ui", ""))
	everybody := identities(r, at, ours)
	_, err = r.remote(at, "127.0.1.1", "", theirs.client("edge")).client.Get("https://" + at + "/healthz")
	require.ErrorContains(t, err, "unknown certificate authority", "a certificate that another authority has signed")

	c := described(r)
	before := snapshot(r)
	for _, who := range everybody {
		for _, route := range c.routes() {
			if allowed(who.role, route.role) {
				continue
			}
			path, body := real(route, way.ID)
			status, problem := who.ask(route.method, path, body)
			require.Contains(t, []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests}, status, "%s: %s: %s", who.name, route, problem)
			var p wire.Problem
			if route.method != http.MethodHead {
				require.NoError(t, json.Unmarshal([]byte(problem), &p), "%s: %s: %s", who.name, route, problem)
				require.NotEmpty(t, p.Next)
			}
		}
		require.Equal(t, before, snapshot(r), "%s has changed something", who.name)
	}
	for _, who := range everybody {
		for _, route := range c.routes() {
			if !allowed(who.role, route.role) {
				continue
			}
			// Nothing of that name is there, and no body can be read: what is refused is so
			// for that reason.
			status, problem := who.ask(route.method, parameter.ReplaceAllString(route.path, "nope"), "{")
			require.NotContains(t, []int{http.StatusForbidden, http.StatusTooManyRequests, http.StatusMisdirectedRequest}, status, "%s: %s: %s", who.name, route, problem)
			if route.String() != "POST /v1/session" {
				require.NotEqual(t, http.StatusUnauthorized, status, "%s: %s: %s", who.name, route, problem)
			}
		}
	}
}

// roles are what there is, from nothing upward.
var roles = []string{"none", "view", "change", "admin"}

func allowed(has, needed string) bool { return slices.Index(roles, has) >= slices.Index(roles, needed) }

// identities are all kinds of those who come.
func identities(r *rig, at string, ours *authority) []somebody {
	t := r.t
	t.Helper()
	cred := func(gid uint32, more ...uint32) *syscall.Credential {
		return &syscall.Credential{Uid: nobody, Gid: gid, Groups: more}
	}
	all := []somebody{
		r.asUser("root", "admin", &syscall.Credential{}),
		r.asUser("a member of trayd", "change", cred(nobody, daemon)),
		r.asUser("a member of trayd-view", "view", cred(games)),
		r.asUser("a member of both", "change", cred(games, daemon)),
		r.asUser("nobody", "none", cred(nobody)),
		r.asUser("a member of root's group", "none", cred(0)),
	}
	from := 1
	over := func(name, role, token string, a *authority, cert string) {
		from++
		address := fmt.Sprintf("127.0.1.%d", from) // each waits for its own wrong tokens alone
		if a == nil {
			all = append(all, overTLS(name, role, r.remote(at, address, token, nil)))
			return
		}
		all = append(all, overTLS(name, role, r.remote(at, address, token, a.client(cert))))
	}
	for _, role := range roles[1:] {
		over("a token to "+role, role, r.newToken(role, role, "1h"), nil, "")
	}
	expired, revoked := r.newToken("expired", "admin", "1ms"), r.newToken("revoked", "admin", "1h")
	r.local().want(204, "DELETE", "/v1/tokens/revoked", "")
	time.Sleep(10 * time.Millisecond)
	over("nobody over TLS", "none", "", nil, "")
	over("an expired token", "none", expired, nil, "")
	over("a revoked token", "none", revoked, nil, "")
	over("garbage", "none", "trayd_garbage", nil, "")
	over("a certificate with a role", "change", "", ours, "edge")
	over("a certificate without", "none", "", ours, "nobody")
	return all
}

// real is a request that would do something: on what there is, with a body that can be read.
func real(route apiRoute, way string) (path, body string) {
	path = strings.NewReplacer("{vm}", "m1", "{drive}", "cd0", "{pool}", "local", "{image}", "disc", "{token}", "admin", "{ui}", way, "{id}", "any", "{namespace}", "default").Replace(route.path)
	switch {
	case strings.Contains(path, "/harvester/"):
		return path + "?action=ejectCdRomVolume", `{"deviceName":"cd0"}`
	case route.String() == "DELETE /v1/vms/{vm}":
		return path + "?force=true", ""
	case route.String() == "POST /v1/images/gc":
		return path + "?unused=1ns", ""
	case strings.HasSuffix(path, "/eject"), strings.HasSuffix(path, "/change"):
		return path, `{"force":true}`
	case strings.HasSuffix(path, "/stop"):
		return path, `{"wait":"1ms","then_force":true}`
	case strings.HasSuffix(path, "/capture"):
		return path, `{"name":"stolen"}`
	case route.String() == "POST /v1/vms":
		return path, `{"definition":{"name":"m2","memory":"32MiB"}}`
	case route.method == "PATCH":
		return path, `{"autostart":true}`
	case route.String() == "POST /v1/tokens":
		return path, `{"name":"mine","role":"admin"}`
	case route.String() == "POST /v1/images":
		return path, `{"name":"mine"}`
	case route.method == "PUT":
		return strings.Replace(path, "disc", "mine", 1), "content"
	}
	return path, ""
}

// snapshot is what a host has.
func snapshot(r *rig) []string {
	r.t.Helper()
	state, err := os.ReadFile(r.stateFile())
	require.NoError(r.t, err)
	a := r.local()
	m := decoded[wire.VMStatus](r.t, a.want(200, "GET", "/v1/vms/m1", ""))
	for i := range m.Drives {
		m.Drives[i].Last = nil
	}
	vm, err := json.Marshal(m)
	require.NoError(r.t, err)
	return []string{
		string(state), string(vm), string(a.want(200, "GET", "/v1/images", "").body), string(a.want(200, "GET", "/v1/operations", "").body),
		fmt.Sprint(len(decoded[[]wire.Token](r.t, a.want(200, "GET", "/v1/tokens", "")))), fmt.Sprint(r.qemus()),
	}
}

// TestTrayctlAsOthers: who may not use trayd, or not for that, reads what to do.
func TestTrayctlAsOthers(t *testing.T) {
	r := newRig(t)
	r.api = "group = \"daemon\"\nview_group = \"games\"\n"
	r.start("")
	r.ready()
	require.NoError(t, os.Chmod(bin, 0o755)) // other users run trayctl
	as := func(gid uint32, args ...string) result {
		cmd := exec.Command(filepath.Join(bin, "trayctl"), args...)
		cmd.Env, cmd.Dir = []string{"TRAYD_SOCKET=" + r.socket()}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: gid}}
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		_ = cmd.Run() // the code says it
		return result{code: cmd.ProcessState.ExitCode(), stderr: said.String()}
	}
	require.Zero(t, as(games, "vms").code)
	require.Zero(t, as(daemon, "vms").code)
	for _, row := range []struct {
		gid        uint32
		args, want []string
	}{
		{nobody, []string{"vms"}, []string{"nobody (pid ", "may not use trayd", "next: become root, or a member of the group games (`sudo usermod -aG games $USER`, then log in again)"}},
		{games, []string{"vm", "start", "m1"}, []string{"has the role view; this needs change", "a member of the group daemon"}},
		{daemon, []string{"token", "ls"}, []string{"has the role change; this needs admin", "next: become root (`sudo trayctl ...`)"}},
		{daemon, []string{"token", "create", "x"}, []string{"become root"}},
	} {
		got := as(row.gid, row.args...)
		require.Equal(t, 1, got.code, "%q: %s", row.args, got.stderr)
		for _, w := range row.want {
			require.Contains(t, got.stderr, w)
		}
	}
}
