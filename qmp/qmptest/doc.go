// Package qmptest is a QEMU monitor that does what a test says, for the faults that a real QEMU does not make on demand:
// silence, replies that are late, torn, out of order or never come, garbage, floods of events, a death in the middle of
// a reply.
//
//	srv := qmptest.New(t,
//		qmptest.On("query-status", func(r *qmptest.Request) {
//			r.Return(map[string]any{"running": true, "status": "running"})
//		}),
//		qmptest.On("eject", func(r *qmptest.Request) {
//			r.Error("GenericError", "Device 'cd0' is locked")
//		}),
//		qmptest.On("blockdev-change-medium", func(r *qmptest.Request) {
//			// no answer at all
//		}),
//	)
//	conn, err := qmp.Dial(ctx, srv.Path(), nil)
//
// A [Server] behaves like QEMU where the test says nothing else. It serves one client at a time, and the next one waits
// for its greeting. It answers qmp_capabilities and query-version, accepts no other command before the former, refuses
// commands that nobody programmed with CommandNotFound, runs commands one after the other, and sends events to a client
// that has negotiated. What it received can be read from it.
//
// It is a fake: use it where the real thing cannot be made to fail, and test behaviour against a real QEMU.
package qmptest
