package api_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// keyed sends a request with an Idempotency-Key.
func (h *host) keyed(key, method, path, body string) (*http.Response, string) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, "http://trayd"+path, strings.NewReader(body))
	require.NoError(h.t, err)
	req.Header.Set("Idempotency-Key", key)
	resp, err := h.client.Do(req)
	require.NoError(h.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(h.t, err)
	return resp, string(b)
}

// TestRepeat: a request that comes again with its key gets the first answer and does nothing;
// another one with that key is refused.
func TestRepeat(t *testing.T) {
	h := newHost(t)
	first, answer := h.keyed("k", "POST", "/v1/tokens", `{"name":"ci","role":"view"}`)
	require.Equal(t, http.StatusCreated, first.StatusCode, answer)
	again, same := h.keyed("k", "POST", "/v1/tokens", `{"name":"ci","role":"view"}`)
	require.Equal(t, http.StatusCreated, again.StatusCode)
	require.Equal(t, answer, same, "the secret, too: who lost the first answer has no other way to it")
	require.Equal(t, "true", again.Header.Get("Idempotency-Replayed"))
	require.Equal(t, first.Header.Get("Location"), again.Header.Get("Location"))
	require.Len(t, h.access.Tokens.List(), 1)

	other, problem := h.keyed("k", "POST", "/v1/tokens", `{"name":"other","role":"view"}`)
	require.Equal(t, http.StatusUnprocessableEntity, other.StatusCode, problem)
	require.Contains(t, problem, "idempotency-key-reused")
	refused, problem := h.keyed("new", "POST", "/v1/tokens", `{"name":"ci","role":"view"}`)
	require.Equal(t, http.StatusConflict, refused.StatusCode, problem)
	long, _ := h.keyed(strings.Repeat("k", 256), "POST", "/v1/tokens", `{"name":"third","role":"view"}`)
	require.Equal(t, http.StatusBadRequest, long.StatusCode)
	large, _ := h.keyed("large", "POST", "/v1/tokens", strings.Repeat(" ", 65<<10)+`{}`)
	require.Equal(t, http.StatusRequestEntityTooLarge, large.StatusCode, "a key allows no more than there is without")
	require.Len(t, h.access.Tokens.List(), 1)
}

// TestRepeatAtOnce: of requests with one key at the same time one is carried out, and all get
// its answer.
func TestRepeatAtOnce(t *testing.T) {
	h := newHost(t)
	answers := make([]string, 20)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() { _, answers[i] = h.keyed("k", "POST", "/v1/tokens", `{"name":"ci","role":"view"}`) })
	}
	all.Wait()
	for _, a := range answers {
		require.Equal(t, answers[0], a)
	}
	require.Contains(t, answers[0], "secret")
	require.Len(t, h.access.Tokens.List(), 1)
}

// TestRepeatAfterLoss: a client that goes in the middle of a wait, and comes again, gets the
// answer to what it began.
func TestRepeatAfterLoss(t *testing.T) {
	h := newHostWith(t, qemutest.IDE)
	disc := qemutest.Disc(t, h.dir, "DISC_A")
	var op agent.OperationStatus
	h.do("POST", "/v1/vms/vm1/drives/-/insert", `{"medium":"`+disc+`"}`, http.StatusOK, &op)
	g := h.vm.Guest(t)
	g.Volume()
	g.Lock()
	c := h.dial()
	const body = `{"wait":"1m"}`
	fmt.Fprintf(c, "POST /v1/vms/vm1/drives/cd0/eject HTTP/1.1\r\nHost: trayd\r\nIdempotency-Key: k\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	require.Eventually(t, func() bool {
		var d agent.DriveStatus
		h.do("GET", "/v1/vms/vm1/drives/cd0", "", http.StatusOK, &d)
		return d.Operation != nil && d.Operation.Phase == wire.Waiting
	}, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, c.Close())
	time.Sleep(100 * time.Millisecond) // trayd has noticed
	type got struct {
		status int
		body   string
	}
	came := make(chan got, 1)
	go func() {
		resp, b := h.keyed("k", "POST", "/v1/vms/vm1/drives/cd0/eject", body)
		came <- got{resp.StatusCode, b}
	}()
	time.Sleep(100 * time.Millisecond) // it waits for the first one
	g.Unlock()
	g.Eject()
	a := <-came
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.NoError(t, json.Unmarshal([]byte(a.body), &op))
	require.Equal(t, agent.Done, op.Result)
	var all []wire.OperationStatus
	h.do("GET", "/v1/operations", "", http.StatusOK, &all)
	require.Len(t, all, 2, "the insert and one eject")
}
