package fault

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
)

// tb is the test that a qemutest.Guest wants to fail, for programs: a failure ends the
// function that run runs, and nothing else.
type tb struct {
	testing.TB // its other methods aren't called
	err        error
	ends       []func()
}

// run runs f, and returns what it failed with.
func (t *tb) run(f func()) error {
	t.err = nil
	done := make(chan struct{})
	go func() { // FailNow ends it
		defer close(done)
		f()
	}()
	<-done
	return t.err
}

// end does what a test does at its end.
func (t *tb) end() {
	for _, f := range t.ends {
		f()
	}
	t.ends = nil
}

func (t *tb) Helper()                  {}
func (t *tb) Context() context.Context { return context.Background() }
func (t *tb) Cleanup(f func())         { t.ends = append(t.ends, f) }

func (t *tb) Errorf(format string, args ...any) {
	t.err = errors.Join(t.err, fmt.Errorf(format, args...))
}

func (t *tb) FailNow() {
	if t.err == nil {
		t.err = errors.New("failed")
	}
	runtime.Goexit()
}

func (t *tb) Fatal(args ...any) { t.Fatalf("%s", fmt.Sprint(args...)) }

func (t *tb) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	t.FailNow()
}
