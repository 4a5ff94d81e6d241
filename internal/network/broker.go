package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/access"
)

// The broker's limits.
const (
	// maxRequests are served at once; further ones wait in the socket's queue. trayd has
	// fewer: a few downloads, a connection for each webhook.
	maxRequests = 64
	// askLimit is how long a client may take to say what it wants, and to take the answer.
	askLimit = 5 * time.Second
	// openLimit is how long a request is worked on. The kernel gives a connection up after
	// 127 s (tcp(7), tcp_syn_retries).
	openLimit = 2 * time.Minute
)

// Broker opens sockets for the owner of its socket.
type Broker struct {
	Listener *net.UnixListener
	// Idle is how long it serves on without a request; 0 is for ever.
	Idle time.Duration
	// Uevents opens the socket on which the kernel tells of devices.
	Uevents func() (*os.File, error)
	Log     *slog.Logger
}

// Serve answers requests until ctx ends, or there have been none for Idle: both are nil.
// What is under way when ctx ends is cancelled. It closes the listener.
func (b *Broker) Serve(ctx context.Context) error {
	defer b.Listener.Close()
	of, err := ownerOf(b.Listener.Addr().String())
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { b.Listener.Close() })
	defer stop()
	slots := make(chan struct{}, maxRequests) // has one for each request that is served
	var requests sync.WaitGroup
	defer requests.Wait()
	for {
		slots <- struct{}{}
		if b.Idle > 0 {
			_ = b.Listener.SetDeadline(time.Now().Add(b.Idle)) // a closed one says so below
		}
		c, err := b.Listener.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			<-slots
			if len(slots) == 0 {
				return nil
			}
			continue
		case err != nil:
			return fmt.Errorf("trayd can't be listened for: %w", err)
		}
		requests.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			if err := b.answer(ctx, c, of); err != nil {
				b.Log.Warn("a request was not answered", "error", err)
			}
		})
	}
}

// owner is whose a socket is.
type owner struct{ uid, gid int }

func ownerOf(path string) (owner, error) {
	info, err := os.Stat(path)
	if err != nil {
		return owner{}, fmt.Errorf("whose the broker's socket is: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != fs.ModeSocket {
		return owner{}, fmt.Errorf("the broker's socket %s is no socket", path)
	}
	return owner{int(st.Uid), int(st.Gid)}, nil
}

// lets reports whether a process may ask: root, the socket's owner, and where that is root
// the socket's group, which is trayd's. What trayd runs is in that group, too, but has no
// capability to get at a socket that root alone may open.
func (o owner) lets(uid, gid int) bool {
	return uid == 0 || uid == o.uid || o.uid == 0 && o.gid != 0 && gid == o.gid
}

// answer serves one request. The error is of a client that isn't answered.
func (b *Broker) answer(ctx context.Context, c *net.UnixConn, of owner) error {
	uid, gid, err := access.IDs(c)
	if err != nil {
		return err
	}
	if !of.lets(uid, gid) {
		return fmt.Errorf("user %d asked, and only %d, whose the socket is, may", uid, of.uid)
	}
	if err := c.SetReadDeadline(time.Now().Add(askLimit)); err != nil {
		return err
	}
	var r request
	f, err := receive(c, &r)
	if f != nil {
		f.Close() // nobody wants it
	}
	if err != nil {
		return fmt.Errorf("what was asked can't be read: %w", err)
	}
	_ = c.SetReadDeadline(time.Time{}) // not later: it would undo the one that ends the goroutine
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	gone := make(chan struct{})
	go func() { // a client that goes cancels; one that says more does too
		defer close(gone)
		_, _ = c.Read(make([]byte, 1))
		cancel()
	}()
	answer, socket := b.open(ctx, r)
	if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		_ = c.SetWriteDeadline(time.Now().Add(askLimit))
		err = socket.pass(c, answer)
	}
	socket.close()
	cancel()
	_ = c.SetReadDeadline(time.Now()) // ends the goroutine
	<-gone
	return err
}
