package qmp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qemu"
	goqmp "github.com/digitalocean/go-qemu/qmp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/qmp/qmptest"
)

// TestGoQEMUDomain runs go-qemu's Domain on a Conn with a real QEMU behind it.
func TestGoQEMUDomain(t *testing.T) {
	m := startQEMU(t, "-device", "ide-cd,id=cd0")
	c := dial(t, m.path)
	d, err := qemu.NewDomain(c, "vm")
	require.NoError(t, err)
	defer d.Close()

	version, err := d.Version()
	require.NoError(t, err)
	assert.Equal(t, c.Version().String(), version)
	status, err := d.Status()
	require.NoError(t, err)
	assert.Equal(t, qemu.StatusPreLaunch, status)
	drives, err := d.BlockDevices()
	require.NoError(t, err)
	require.Len(t, drives, 1)
	assert.True(t, drives[0].Removable)
	commands, err := d.Commands()
	require.NoError(t, err)
	assert.Contains(t, commands, "blockdev-change-medium")

	events, done, err := d.Events()
	require.NoError(t, err)
	require.NoError(t, c.Execute(within(t, soon), "cont", nil, nil))
	select {
	case e := <-events:
		assert.Equal(t, "RESUME", e.Event)
		assert.NotZero(t, e.Timestamp.Seconds)
	case <-time.After(soon):
		assert.Fail(t, "no event")
	}
	done <- struct{}{}
	for range events { // closed by the domain
	}
	require.NoError(t, d.Close())
	require.ErrorIs(t, c.Connect(), qmp.ErrClosed)
}

// TestGoQEMUReplyIsOwned is the race that go-qemu's own monitor has, against the same kind of QEMU.
func TestGoQEMUReplyIsOwned(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			first, err := c.Run([]byte(`{"execute":"query-version"}`))
			assert.NoError(t, err)
			before := bytes.Clone(first)
			for range 50 {
				schema, err := c.Run([]byte(`{"execute":"query-status","id":"mine"}`))
				assert.NoError(t, err)
				assert.True(t, json.Valid(schema))
			}
			assert.Equal(t, string(before), string(first))
		})
	}
	group.Wait()
	schema, err := c.Run([]byte(`{"execute":"query-qmp-schema"}`))
	require.NoError(t, err)
	assert.Greater(t, len(schema), 64<<10)
	assert.True(t, json.Valid(schema))
}

func TestRun(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("echo", func(r *qmptest.Request) { r.Return(r.Args) }))
	c := dial(t, srv.Path())
	var m goqmp.Monitor = c
	require.NoError(t, m.Connect())
	reply, err := m.Run([]byte(`{"execute":"echo","arguments":{"a":[1,2]},"id":"theirs"}`))
	require.NoError(t, err)
	var parts struct {
		Return json.RawMessage
		ID     json.RawMessage
	}
	require.NoError(t, json.Unmarshal(reply, &parts))
	assert.Equal(t, `{"a":[1,2]}`, string(parts.Return))
	assert.Equal(t, string(srv.Wait("echo", 1).ID), string(parts.ID))

	_, err = m.Run([]byte(`{"execute":"none"}`))
	var refusal *qmp.Error
	require.ErrorAs(t, err, &refusal)
	for _, wrong := range []string{``, `[]`, `{}`, `{"execute":5}`, `{"execute":"x"`} {
		_, err = m.Run([]byte(wrong))
		require.ErrorContains(t, err, "was not sent", wrong)
	}
	require.NoError(t, m.Disconnect())
	_, err = m.Run([]byte(`{"execute":"echo"}`))
	require.ErrorIs(t, err, qmp.ErrClosed)
	_, err = m.Events(context.Background())
	require.ErrorIs(t, err, qmp.ErrClosed)
}

func TestMonitorEventsNobodyReads(t *testing.T) {
	srv := qmptest.New(t, returning("stop", nil))
	c := dial(t, srv.Path())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events, err := c.Events(ctx)
	require.NoError(t, err)
	for range 200 {
		srv.Event("E", map[string]any{"a": 1})
	}
	_, err = c.Run([]byte(`{"execute":"stop"}`))
	require.NoError(t, err)
	assert.Len(t, events, 64)
	e := <-events
	assert.Equal(t, map[string]any{"a": float64(1)}, e.Data)
	cancel()
	n := 0
	for range events {
		n++
	}
	assert.Equal(t, 63, n)

	events, err = c.Events(ctx)
	require.NoError(t, err)
	_, open := <-events
	assert.False(t, open, "the context has ended")
	events, err = c.Events(context.Background())
	require.NoError(t, err)
	require.NoError(t, c.Disconnect())
	_, open = <-events
	assert.False(t, open)
}
