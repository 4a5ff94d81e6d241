package qmp_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp/qmptest"
)

func TestEveryoneGetsEveryEvent(t *testing.T) {
	srv := qmptest.New(t)
	c := dial(t, srv.Path())
	one, two := c.Subscribe(4), c.Subscribe(4)
	srv.Event("STOP", nil)
	srv.Event("DEVICE_TRAY_MOVED", map[string]any{"id": "cd0", "tray-open": true})
	for _, s := range []interface{ Missed() uint64 }{one, two} {
		assert.Zero(t, s.Missed())
	}
	for range 2 {
		one, two = two, one
		assert.Equal(t, "STOP", next(t, one).Name)
		e := next(t, one)
		assert.Equal(t, "DEVICE_TRAY_MOVED", e.Name)
		assert.JSONEq(t, `{"id":"cd0","tray-open":true}`, string(e.Data))
		assert.False(t, e.Time.IsZero())
	}
	one.Close()
	one.Close()
	_, open := <-one.C
	assert.False(t, open)
	srv.Event("RESUME", nil)
	assert.Equal(t, "RESUME", next(t, two).Name)
}

func TestFloodOfEvents(t *testing.T) {
	const flood = 5000
	srv := qmptest.New(t, returning("stop", nil))
	c := dial(t, srv.Path())
	lazy := c.Subscribe(3)
	var group sync.WaitGroup
	group.Go(func() {
		for i := range flood {
			srv.Event("FLOOD", map[string]int{"n": i})
		}
	})
	for range 20 {
		require.NoError(t, c.Execute(within(t, soon), "stop", nil, nil))
	}
	group.Wait()
	require.NoError(t, c.Execute(within(t, soon), "stop", nil, nil))
	assert.Equal(t, uint64(flood-3), lazy.Missed())
	for i := range 3 {
		assert.JSONEq(t, `{"n":`+string(rune('0'+i))+`}`, string(next(t, lazy).Data))
	}
}

func TestEarlyEventsAreForTheFirst(t *testing.T) {
	srv := qmptest.New(t, returning("stop", nil))
	c := dial(t, srv.Path())
	for range 20 {
		srv.Event("EARLY", nil)
	}
	require.NoError(t, c.Execute(within(t, soon), "stop", nil, nil))
	first, second := c.Subscribe(100), c.Subscribe(0)
	assert.Len(t, first.C, 16)
	assert.Equal(t, uint64(4), first.Missed())
	assert.Empty(t, second.C)
	assert.Zero(t, second.Missed())
	srv.Event("NOW", nil)
	assert.Equal(t, "NOW", next(t, second).Name)
}

func TestClosingWhileEventsCome(t *testing.T) {
	srv := qmptest.New(t)
	c := dial(t, srv.Path())
	var group sync.WaitGroup
	group.Go(func() {
		for range 500 {
			srv.Event("E", nil)
		}
	})
	for range 4 {
		group.Go(func() {
			for range 100 {
				s := c.Subscribe(1)
				s.Close()
			}
		})
	}
	group.Wait()
	require.NoError(t, c.Err())
}

// TestEventsAndReplies tells an event that a reply knows of from a later one.
func TestEventsAndReplies(t *testing.T) {
	srv := qmptest.New(t)
	srv.Handle("query-block", func(r *qmptest.Request) {
		srv.Event("DEVICE_TRAY_MOVED", nil)
		r.Return([]any{})
		srv.Event("DEVICE_TRAY_MOVED", nil)
	})
	c := dial(t, srv.Path())
	events := c.Subscribe(4)
	for i := range uint64(2) {
		call, err := c.Send(within(t, soon), "query-block", nil, nil)
		require.NoError(t, err)
		require.NoError(t, call.Wait(within(t, soon), nil))
		before, after := next(t, events), next(t, events)
		assert.Equal(t, 2*i+1, before.Seq)
		assert.Equal(t, before.Seq, call.Events(), "the reply knows of the event before it")
		assert.Equal(t, 2*i+2, after.Seq, "and not of the one behind it")
	}
}
