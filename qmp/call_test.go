package qmp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/qmp/qmptest"
)

func TestExecute(t *testing.T) {
	srv := qmptest.New(t,
		qmptest.On("echo", func(r *qmptest.Request) { r.Return(r.Args) }),
		qmptest.On("none", func(r *qmptest.Request) { r.Return(len(r.Args)) }),
	)
	c := dial(t, srv.Path())
	ctx := within(t, soon)
	var got struct{ Text string }
	require.NoError(t, c.Execute(ctx, "echo", map[string]string{"text": "ä \"{\\\n<"}, &got))
	assert.Equal(t, "ä \"{\\\n<", got.Text)

	var n int
	var nobody *struct{}
	for _, args := range []any{nil, nobody, map[string]any(nil)} {
		require.NoError(t, c.Execute(ctx, "none", args, &n))
		assert.Zero(t, n, "QEMU does not take null for no arguments")
	}
	require.NoError(t, c.Execute(ctx, "none", nil, nil))

	err := c.Execute(ctx, "none", nil, &got)
	var typ *json.UnmarshalTypeError
	require.ErrorAs(t, err, &typ)
	require.NoError(t, c.Err(), "a wrong idea of a result is not QEMU's fault")

	err = c.Execute(ctx, "echo", func() {}, nil)
	require.ErrorContains(t, err, "echo was not sent")

	err = c.Execute(ctx, "no\"such\n", nil, nil)
	var refusal *qmp.Error
	require.ErrorAs(t, err, &refusal)
	assert.Equal(t, qmp.ClassCommandNotFound, refusal.Class)
	assert.Equal(t, "no\"such\n", refusal.Command)
}

func TestRepliesBelongToTheirCommands(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("echo", func(r *qmptest.Request) { r.Return(r.Args) }))
	c := dial(t, srv.Path())
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := range 100 {
				want := fmt.Sprintf("%d-%d-%s", worker, i, strings.Repeat("x", i*worker*10))
				var got struct{ Text string }
				err := c.Execute(within(t, soon), "echo", map[string]string{"text": want}, &got)
				if !assert.NoError(t, err) || !assert.Equal(t, want, got.Text) {
					return
				}
			}
		})
	}
	group.Wait()
	assert.Zero(t, c.Late())
}

func TestRepliesOutOfOrder(t *testing.T) {
	var kept []*qmptest.Request
	srv := qmptest.New(t,
		qmptest.On("keep", func(r *qmptest.Request) { kept = append(kept, r) }),
		qmptest.On("release", func(r *qmptest.Request) {
			r.Return(nil)
			for i := len(kept) - 1; i >= 0; i-- {
				kept[i].Return(i)
			}
		}))
	c := dial(t, srv.Path())
	var calls []*qmp.Call
	for range 5 {
		call, err := c.Send(within(t, soon), "keep", nil, nil)
		require.NoError(t, err)
		calls = append(calls, call)
	}
	require.NoError(t, c.Execute(within(t, soon), "release", nil, nil))
	for want, call := range calls {
		for range 2 { // Wait may be repeated
			var got int
			require.NoError(t, call.Wait(within(t, soon), &got))
			assert.Equal(t, want, got)
		}
	}
}

func TestLateReplies(t *testing.T) {
	var kept *qmptest.Request
	srv := qmptest.New(t,
		qmptest.On("slow", func(r *qmptest.Request) { kept = r }),
		qmptest.On("query", func(r *qmptest.Request) {
			if kept != nil {
				kept.Return(strings.Repeat("late", 10_000))
			}
			r.Return("fresh")
		}))
	c := dial(t, srv.Path())
	ctx, cancel := context.WithCancel(context.Background())
	call, err := c.Send(ctx, "slow", nil, nil)
	require.NoError(t, err)
	cancel()
	for range 2 {
		err = call.Wait(ctx, nil)
		require.ErrorIs(t, err, qmp.ErrUnanswered)
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, qmp.ErrClosed)
	}
	assert.Equal(t, 1, c.Unanswered())
	assert.Zero(t, c.Late())

	var got string
	require.NoError(t, c.Execute(within(t, soon), "query", nil, &got))
	assert.Equal(t, "fresh", got)
	assert.Equal(t, 0, c.Unanswered())
	assert.Equal(t, uint64(1), c.Late())
	require.ErrorIs(t, call.Wait(context.Background(), nil), qmp.ErrUnanswered, "given up is given up")
}

func TestRepliesToSomebodyElse(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("stop", func(r *qmptest.Request) {
		r.Write(`{"return":"wrong","id":"1"}{"error":{"class":"GenericError","desc":"x"},"id":"libvirt-7"}{"return":{},"id":[1]}`)
		r.Return("right")
	}))
	c := dial(t, srv.Path())
	var got string
	require.NoError(t, c.Execute(within(t, soon), "stop", nil, &got))
	assert.Equal(t, "right", got)
	assert.Equal(t, uint64(3), c.Late())
	assert.Zero(t, c.Unanswered())
}

func TestIDsDifferBetweenConnections(t *testing.T) {
	srv := qmptest.New(t, returning("stop", nil))
	seen := make(map[string]bool)
	for range 3 {
		c := dial(t, srv.Path())
		for range 3 {
			require.NoError(t, c.Execute(within(t, soon), "stop", nil, nil))
		}
		c.Close()
	}
	for _, r := range srv.Requests() {
		id := string(r.ID)
		assert.False(t, seen[id], id)
		seen[id] = true
		assert.LessOrEqual(t, len(id), 7, "QEMU takes time for every byte")
	}
}

func TestEndedContextSendsNothing(t *testing.T) {
	srv := qmptest.New(t, returning("stop", nil))
	c := dial(t, srv.Path())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := c.Execute(ctx, "stop", nil, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, qmp.ErrUnanswered)
	require.NotErrorIs(t, err, qmp.ErrClosed)
	require.NoError(t, c.Execute(within(t, soon), "stop", nil, nil))
	assert.Equal(t, []string{"stop"}, srv.Commands())
	assert.Zero(t, c.Unanswered())
}

// TestServerThatDoesNotRead fills the socket until a write gets stuck. Replies and events must still come in, others
// must be able to leave the queue, and what was sent in part must end the connection.
func TestServerThatDoesNotRead(t *testing.T) {
	release := make(chan struct{})
	srv := qmptest.New(t, qmptest.On("block", func(r *qmptest.Request) {
		select {
		case <-release:
			r.Return("done")
		case <-r.Done():
		}
	}))
	begun := make(largeWrites, 1)
	c, err := qmp.Dial(within(t, soon), srv.Path(), &qmp.Options{Wire: begun})
	require.NoError(t, err)
	defer c.Close()
	events := c.Subscribe(4)
	blocked, err := c.Send(within(t, soon), "block", nil, nil)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	large := map[string]string{"text": strings.Repeat("x", 4<<20)}
	stuck := make(chan error)
	go func() { stuck <- c.Execute(ctx, "large", large, nil) }()
	<-begun
	time.Sleep(20 * time.Millisecond) // for the write to get stuck; when it does not, the test is only weaker

	err = c.Execute(within(t, 20*time.Millisecond), "stop", nil, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, qmp.ErrUnanswered, "it never got its turn")

	require.True(t, srv.Event("RESET", nil))
	assert.Equal(t, "RESET", next(t, events).Name, "events come in while a writer is stuck")

	cancel()
	err = <-stuck
	require.ErrorIs(t, err, qmp.ErrUnanswered)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, requireEnded(t, c), "in part")
	close(release)
	require.ErrorIs(t, blocked.Wait(within(t, soon), nil), qmp.ErrUnanswered)
}

// largeWrites is a Wire that tells when a large message is about to be written.
type largeWrites chan struct{}

func (w largeWrites) Write(p []byte) (int, error) {
	if len(p) > 1<<20 {
		w <- struct{}{}
	}
	return len(p), nil
}

// TestFullSocket has the socket filled to the last byte by complete commands, so that the next one waits without having
// sent anything: its end is harmless.
func TestFullSocket(t *testing.T) {
	release := make(chan struct{})
	srv := qmptest.New(t,
		qmptest.On("block", func(r *qmptest.Request) {
			select {
			case <-release:
				r.Return(nil)
			case <-r.Done():
			}
		}),
		qmptest.On("fill", func(r *qmptest.Request) { r.Return(nil) }))
	c := dial(t, srv.Path())
	_, err := c.Send(within(t, soon), "block", nil, nil)
	require.NoError(t, err)
	var calls []*qmp.Call
	for {
		call, err := c.Send(within(t, 50*time.Millisecond), "fill", nil, nil)
		if err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, qmp.ErrUnanswered)
			break
		}
		calls = append(calls, call)
		require.Less(t, len(calls), 1_000_000, "this socket takes everything")
	}
	require.NoError(t, c.Err())
	close(release)
	for _, call := range calls {
		require.NoError(t, call.Wait(within(t, soon), nil))
	}
	require.NoError(t, c.Execute(within(t, soon), "fill", nil, nil))
	assert.Zero(t, c.Unanswered())
}

func TestLastWordsAreHeard(t *testing.T) {
	srv := qmptest.New(t, unanswered("stop"))
	c := dial(t, srv.Path())
	events := c.Subscribe(100)
	for range 50 {
		srv.Event("SHUTDOWN", map[string]bool{"guest": true})
	}
	srv.Close()
	err := c.Execute(within(t, soon), "stop", nil, nil)
	require.ErrorIs(t, err, qmp.ErrClosed)
	require.Error(t, c.Err(), "ErrClosed means that the connection has ended")
	require.NotErrorIs(t, err, qmp.ErrUnanswered)
	n := 0
	for range events.C {
		n++
	}
	assert.Equal(t, 50, n)
}

func TestSlowReply(t *testing.T) {
	want := strings.Repeat("abc", 2000)
	srv := qmptest.New(t, qmptest.Pretty(), qmptest.On("query", func(r *qmptest.Request) {
		r.Dribble(map[string]string{"text": want}, 500, time.Millisecond)
	}))
	c := dial(t, srv.Path())
	var got struct{ Text string }
	require.NoError(t, c.Execute(within(t, soon), "query", nil, &got))
	assert.Equal(t, want, got.Text)
}

func TestTornReplyAndSilence(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("query", func(r *qmptest.Request) { r.Torn("abc", 9) }))
	c := dial(t, srv.Path())
	call, err := c.Send(within(t, soon), "query", nil, nil)
	require.NoError(t, err)
	err = call.Wait(within(t, 50*time.Millisecond), nil)
	require.ErrorIs(t, err, qmp.ErrUnanswered)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, c.Err(), "the rest may still come")
}

func TestLargeReply(t *testing.T) {
	want := strings.Repeat("x", 9<<20)
	srv := qmptest.New(t, returning("query", want), returning("stop", "y"))
	c := dial(t, srv.Path())
	for range 2 {
		large, err := c.Send(within(t, soon), "query", nil, nil)
		require.NoError(t, err)
		var got string
		require.NoError(t, c.Execute(within(t, soon), "stop", nil, &got))
		assert.Equal(t, "y", got)
		require.NoError(t, large.Wait(within(t, soon), &got))
		assert.True(t, want == got)
	}
}

// TestResultsAreTheCallers keeps a raw result while further replies come in.
func TestResultsAreTheCallers(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("echo", func(r *qmptest.Request) { r.Return(r.Args) }))
	c := dial(t, srv.Path())
	var kept []json.RawMessage
	for i := range 50 {
		var raw json.RawMessage
		require.NoError(t, c.Execute(within(t, soon), "echo", map[string]int{"i": i}, &raw))
		kept = append(kept, raw)
	}
	for i, raw := range kept {
		assert.Equal(t, fmt.Sprintf(`{"i":%d}`, i), string(raw))
	}
}

func TestCancellationUnderLoad(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("echo", func(r *qmptest.Request) { r.Return(r.Args) }))
	c := dial(t, srv.Path())
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range 200 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i%10)*30*time.Microsecond)
				want := map[string]int{"n": worker*1000 + i}
				var got map[string]int
				err := c.Execute(ctx, "echo", want, &got)
				cancel()
				if err == nil {
					assert.Equal(t, want, got)
				} else {
					assert.ErrorIs(t, err, context.DeadlineExceeded)
				}
			}
		})
	}
	group.Wait()
	require.NoError(t, c.Execute(within(t, soon), "echo", map[string]int{}, nil))
	assert.Zero(t, c.Unanswered(), "the server answers in order, so everything has been answered")
	require.NoError(t, c.Err())
}

func TestFilesTravelWithTheirCommand(t *testing.T) {
	type received struct {
		Opaque string
		FDSet  *int `json:"fdset-id"`
	}
	srv := qmptest.New(t, returning("add-fd", map[string]int{"fdset-id": 3, "fd": 17}))
	c := dial(t, srv.Path())
	ctx := within(t, soon)
	file := someFile(t, "content")
	fd, err := c.AddFD(ctx, file, -1, "op-1")
	require.NoError(t, err)
	assert.Equal(t, qmp.FD{FDSet: 3, FD: 17}, fd)
	_, err = c.AddFD(ctx, someFile(t, "other"), 0, "")
	require.NoError(t, err)

	var first, second received
	r := srv.Wait("add-fd", 1)
	r.Decode(&first)
	assert.Equal(t, received{Opaque: "op-1"}, first)
	assert.Equal(t, "content", contentOf(t, r.File))
	r = srv.Wait("add-fd", 2)
	r.Decode(&second)
	assert.Equal(t, received{FDSet: new(int)}, second)
	assert.Equal(t, "other", contentOf(t, r.File))

	file.Close()
	_, err = c.AddFD(ctx, file, -1, "")
	require.Error(t, err)
	require.NotErrorIs(t, err, qmp.ErrClosed, "the file is closed, not the connection")
	_, err = c.AddFD(ctx, nil, -1, "")
	require.ErrorIs(t, err, os.ErrInvalid)
	require.NoError(t, c.Err())
	assert.Len(t, srv.Commands(), 2)
	assert.Zero(t, c.Unanswered())
}
