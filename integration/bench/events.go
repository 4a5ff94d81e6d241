package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// subscribers is how many follow the events.
const subscribers = 200

// beforehand is how many changes there are before the figure: trayd keeps 1024 events.
const beforehand = 520

// events measures from an event's time to its receipt by each of many subscribers, with
// and without one that never reads.
func (b *bench) events(ctx context.Context) error {
	fmt.Printf("%d subscribers of events ...\n", subscribers)
	dir := filepath.Join(b.dir, "events")
	if err := b.machines(dir, "vm", 1); err != nil {
		return err
	}
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	defer d.Stop()
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	heard := make(chan time.Duration, 16*subscribers)
	for range subscribers {
		resp, err := d.subscribe(ctx)
		if err != nil {
			return err
		}
		all.Go(func() {
			defer resp.Body.Close()
			listenTo(resp, heard)
		})
	}
	time.Sleep(200 * time.Millisecond)
	measure := func(changes int) ([]time.Duration, error) {
		var took []time.Duration
		for i := range changes {
			if err := d.change("vm0", b.discs[i%2]); err != nil {
				return nil, err
			}
			for range 2 * subscribers { // it has started, the disc is in
				select {
				case t := <-heard:
					took = append(took, t)
				case <-time.After(10 * time.Second):
					return nil, fmt.Errorf("an event didn't come to everybody")
				}
			}
		}
		slices.Sort(took)
		return took, nil
	}
	// More than what a socket takes (208 KiB) has happened then, for the silent one to get.
	if _, err := measure(beforehand); err != nil {
		return err
	}
	without, err := measure(b.rounds / 4)
	if err != nil {
		return err
	}
	silent, err := d.neverRead()
	if err != nil {
		return err
	}
	defer silent.Close()
	time.Sleep(200 * time.Millisecond) // its socket is full now
	with, err := measure(b.rounds / 4)
	if err != nil {
		return err
	}
	tails := func(d []time.Duration) string {
		return fmt.Sprintf("p50 %s, p99 %s", short(median(d)), short(d[len(d)*99/100]))
	}
	b.add(fmt.Sprintf("event to %d subscribers, and one that never reads", subscribers), tails(with), "without that one "+tails(without), ratio(with, without), "nobody else waits")
	return nil
}

func (d *daemon) subscribe(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://trayd/v1/events", nil)
	if err != nil {
		return nil, err
	}
	return d.Client.Do(req)
}

// listenTo tells how long each event took to come here.
func listenTo(resp *http.Response, heard chan<- time.Duration) {
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		now := time.Now()
		var e wire.Event
		if ok && json.Unmarshal([]byte(data), &e) == nil {
			heard <- now.Sub(e.Time)
		}
	}
}

// neverRead asks for all that has happened and reads nothing of the answer.
func (d *daemon) neverRead() (net.Conn, error) {
	c, err := net.Dial("unix", d.Socket())
	if err != nil {
		return nil, err
	}
	_, err = c.Write([]byte("GET /v1/events?after=1 HTTP/1.1\r\nHost: trayd\r\n\r\n"))
	return c, err
}
