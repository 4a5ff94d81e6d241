package qmp_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/qmp/qmptest"
)

// BenchmarkRoundTrip is one small command and its reply. Against the fake it includes the fake's own work, which is
// larger than the connection's.
func BenchmarkRoundTrip(b *testing.B) {
	b.Run("fake", func(b *testing.B) {
		srv := qmptest.New(b, qmptest.On("query-status", func(r *qmptest.Request) {
			r.Write(`{"return":{"status":"running","running":true},"id":` + string(r.ID) + "}\r\n")
		}))
		roundTrips(b, dial(b, srv.Path()))
	})
	b.Run("qemu", func(b *testing.B) { roundTrips(b, dial(b, startQEMU(b).path)) })
}

func roundTrips(b *testing.B, c *qmp.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.QueryStatus(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSchema(b *testing.B) {
	c := dial(b, startQEMU(b).path)
	b.ReportAllocs()
	for b.Loop() {
		_, err := c.QuerySchema(context.Background())
		require.NoError(b, err)
	}
}

func BenchmarkDial(b *testing.B) {
	m := startQEMU(b)
	b.ReportAllocs()
	for b.Loop() {
		c, err := qmp.Dial(context.Background(), m.path, nil)
		require.NoError(b, err)
		c.Close()
	}
}
