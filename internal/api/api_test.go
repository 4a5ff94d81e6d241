package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/api"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is an agent with its API on a unix socket, and one real machine.
type host struct {
	t      *testing.T
	dir    string
	client *http.Client
	vm     *qemutest.VM
	at     string // over TLS, if it was asked for
	access api.Access
	stop   func() // trayd's end
}

func newHost(t *testing.T) *host { return newHostAt(t, nil, nil) }

// newHostWith is a host whose machine runs, with that drive.
func newHostWith(t *testing.T, kind qemutest.Drive) *host { return newHostAt(t, nil, &kind) }

// newHostAt is a host that listens on l, too, and brings browsers to a page.
func newHostAt(t *testing.T, l net.Listener, kind *qemutest.Drive) *host {
	dir, err := os.MkdirTemp("", "api-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	h := &host{t: t, dir: dir}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "run"), 0o755))
	if kind == nil {
		h.vm = qemutest.Start(t, filepath.Join(dir, "run"), "vm1", qemutest.SATA.With("")...)
	} else {
		h.running(*kind)
	}

	log := slog.New(slog.DiscardHandler)
	j, err := state.Open(filepath.Join(dir, "state.journal"), nil)
	require.NoError(t, err)
	a, err := agent.New(j, agent.Options{
		Monitors: []string{filepath.Join(dir, "run/*.qmp")}, MediaRoots: []string{dir}, Attach: agent.Persistent,
		Look: time.Minute, Command: 5 * time.Second, Wait: 10 * time.Second, GuestEject: agent.GuestEjectRelease, Log: log,
	})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- a.Run(ctx, func() { close(ready) }) }()
	socket, err := net.Listen("unix", filepath.Join(dir, "api.sock"))
	require.NoError(t, err)
	known, err := api.NewAccess(j)
	require.NoError(t, err)
	srv := api.New(ctx, api.Options{Agent: a, Version: "test", Log: log, Access: known, Names: []string{"known.example"}, Page: http.NotFoundHandler()})
	h.access = known
	var served sync.WaitGroup // until Shutdown
	served.Go(func() { _ = srv.Serve(socket) })
	served.Go(func() { _ = srv.ServeTunnels() })
	if l != nil {
		h.at = l.Addr().String()
		served.Go(func() { _ = srv.Serve(l) })
	}
	h.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "api.sock"))
	}}}
	h.stop = sync.OnceFunc(func() {
		stop()
		limit, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		require.NoError(t, srv.Shutdown(limit), "something holds up trayd's end")
	})
	t.Cleanup(func() {
		h.stop()
		served.Wait()
		require.NoError(t, <-ended)
		require.NoError(t, j.Close())
		h.client.CloseIdleConnections()
	})
	<-ready
	return h
}

// running starts the machine, whose processor does nothing.
func (h *host) running(kind qemutest.Drive) {
	side := filepath.Join(h.dir, "side")
	args := append(kind.With(""), qemutest.Idle(h.t, h.dir)...)
	h.vm = qemutest.Start(h.t, filepath.Join(h.dir, "run"), "vm1", append(args, "-qmp", "unix:"+side+",server=on,wait=off")...)
	conn, err := qmp.Dial(h.t.Context(), side, &qmp.Options{Timeout: time.Minute}) // on a host under load
	require.NoError(h.t, err)
	defer conn.Close()
	qemutest.Run(h.t, conn)
}

// dial connects to the socket.
func (h *host) dial() net.Conn {
	h.t.Helper()
	c, err := net.Dial("unix", filepath.Join(h.dir, "api.sock"))
	require.NoError(h.t, err)
	h.t.Cleanup(func() { c.Close() })
	return c
}

// do sends a request and decodes its answer into out.
func (h *host) do(method, path, body string, status int, out any) *http.Response {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, "http://trayd"+path, strings.NewReader(body))
	require.NoError(h.t, err)
	resp, err := h.client.Do(req)
	require.NoError(h.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(h.t, err)
	require.Equal(h.t, status, resp.StatusCode, "%s", b)
	require.EqualValues(h.t, len(b), resp.ContentLength, "an answer of any size says how long it is")
	require.NoError(h.t, json.Unmarshal(b, out), "%s", b)
	return resp
}

func TestChangeAndLook(t *testing.T) {
	h := newHost(t)
	disc := qemutest.Disc(t, h.dir, "DISC_A")
	var op agent.OperationStatus
	h.do("POST", "/v1/vms/vm1/drives/-/insert", `{"medium":"`+disc+`","wait":"1s"}`, http.StatusOK, &op)
	require.Equal(t, agent.Done, op.Result)
	require.Contains(t, op.By, "pid", "who asked, by the kernel's word")
	var d agent.DriveStatus
	h.do("GET", "/v1/vms/vm1/drives/cd0", "", http.StatusOK, &d)
	require.Equal(t, "DISC_A", d.Medium.VolumeID)
	var vms []agent.VMStatus
	h.do("GET", "/v1/vms", "", http.StatusOK, &vms)
	require.Len(t, vms, 1)
	require.True(t, vms[0].Answered)

	resp := h.do("POST", "/v1/vms/vm1/drives/cd0/eject?async=true", "", http.StatusAccepted, &op)
	require.Equal(t, "/v1/operations/"+op.ID, resp.Header.Get("Location"))
	require.Eventually(t, func() bool {
		h.do("GET", "/v1/operations/"+op.ID, "", http.StatusOK, &op)
		return op.Result == agent.Done
	}, 5*time.Second, 10*time.Millisecond)

	var records []agent.Record
	h.do("GET", "/v1/state", "", http.StatusOK, &records)
	require.Len(t, records, 1)
	var findings []agent.Finding
	h.do("GET", "/v1/state/check", "", http.StatusOK, &findings)
	require.Empty(t, findings)
	var v wire.Version
	h.do("GET", "/v1/version", "", http.StatusOK, &v)
	require.Equal(t, os.Getpid(), v.PID)
}

// TestProblems: every refusal is a problem with a stable type and what to do next.
func TestProblems(t *testing.T) {
	h := newHost(t)
	for _, row := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v1/vms/nope", "", 404, "no-such-vm"},
		{"GET", "/v1/vms/vm1/drives/nope", "", 404, "no-such-drive"},
		{"GET", "/v1/operations/nope", "", 404, "no-such-operation"},
		{"GET", "/v2", "", 404, "no-such-page"},
		{"PUT", "/v1/vms", "", 405, "method-not-allowed"},
		{"GET", "/v1/events?after=x", "", 400, "bad-request"},
		{"POST", "/v1/images/gc?dry_run=1", "", 400, "bad-request"},
		{"POST", "/v1/volumes/gc?dry_run", "", 400, "bad-request"},
		{"POST", "/v1/images/gc?dry_run=true;x", "", 400, "bad-request"},
		{"POST", "/v1/images/gc?dryrun=true", "", 400, "bad-request"}, // it would be no dry run
		{"GET", "/v1/vms?state=running", "", 400, "bad-request"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{"medium":`, 400, "bad-request"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{"medum":"x"}`, 400, "bad-request"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{} {}`, 400, "bad-request"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{"medium":"x","wait":"soon"}`, 400, "bad-request"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{"medium":"` + strings.Repeat("x", 70<<10) + `"}`, 413, "request-too-large"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{}`, 400, "bad-request"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{"medium":"/etc/passwd"}`, 403, "medium-outside-roots"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{"medium":"` + h.dir + `/nope.iso"}`, 404, "no-such-medium"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{"medium":"` + strings.Repeat("x/", 2<<10) + `"}`, 404, "no-such-medium"},
		{"POST", "/v1/vms/vm1/drives/cd0/insert", `{"medium":"` + h.dir + `/state.journal"}`, 422, "not-a-disc"},
		{"POST", "/v1/vms/vm1/drives/cd0/cancel", "", 409, "nothing-to-cancel"},
	} {
		var p wire.Problem
		resp := h.do(row.method, row.path, row.body, row.status, &p)
		require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
		require.Equal(t, wire.ProblemPrefix+row.code, p.Type, "%s %s", row.method, row.path)
		require.NotEmpty(t, p.Detail)
		require.NotEmpty(t, p.Next, "%s: what to do next", row.code)
	}
}

// TestQueries: what a probe or a scraper adds to a path is left alone.
func TestQueries(t *testing.T) {
	h := newHost(t)
	for _, path := range []string{"/healthz?x=1", "/metrics?x=1"} {
		resp, err := h.client.Get("http://trayd" + path)
		require.NoError(t, err)
		resp.Body.Close()
		require.NotEqual(t, http.StatusBadRequest, resp.StatusCode, path)
	}
}

// TestEvents: a client that comes back gets what it missed, and hears what isn't kept.
func TestEvents(t *testing.T) {
	h := newHost(t)
	disc := qemutest.Disc(t, h.dir, "DISC_A")
	var op agent.OperationStatus
	h.do("POST", "/v1/vms/vm1/drives/cd0/insert", `{"medium":"`+disc+`"}`, http.StatusOK, &op)
	earlier := h.events("", "1", 4) // of an earlier trayd
	require.Equal(t, []string{wire.EventMissed, agent.EventVMAttached, agent.EventStarted, agent.EventLoaded}, types(earlier))
	since := strconv.FormatUint(earlier[1].ID, 10)
	require.Equal(t, []string{agent.EventStarted, agent.EventLoaded}, types(h.events("", since, 2)))
	require.Equal(t, []string{agent.EventLoaded}, types(h.events("?vm=other&vm=vm1&type=loaded", since, 1)))
	require.Equal(t, []string{wire.EventMissed, agent.EventLoaded}, types(h.events("?type=loaded", "1", 2)), "whatever is asked for may have been missed")

	h.do("POST", "/v1/vms/vm1/drives/cd0/eject", "", http.StatusOK, &op)
	require.Equal(t, []string{agent.EventEjected}, types(h.events("?vm=other&type=ejected&type=x&vm=vm1", since, 1)))
}

// events reads as many events as are wanted.
func (h *host) events(query, last string, n int) []wire.Event {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://trayd/v1/events"+query, nil)
	require.NoError(h.t, err)
	req.Header.Set("Last-Event-ID", last)
	resp, err := h.client.Do(req)
	require.NoError(h.t, err)
	defer resp.Body.Close()
	require.Equal(h.t, "text/event-stream", resp.Header.Get("Content-Type"))
	lines := bufio.NewScanner(resp.Body)
	require.True(h.t, lines.Scan())
	require.Equal(h.t, "retry: 1000", lines.Text())
	var events []wire.Event
	for id := ""; len(events) < n && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			id = text
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e wire.Event
			require.NoError(h.t, json.Unmarshal([]byte(data), &e))
			require.Equal(h.t, id, strconv.FormatUint(e.ID, 10))
			events = append(events, e)
		}
	}
	require.Len(h.t, events, n)
	return events
}

func types(events []wire.Event) (all []string) {
	for _, e := range events {
		all = append(all, e.Type)
	}
	return all
}
