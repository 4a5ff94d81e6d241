package main

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/config"
)

// TestNeedRestart: a reload takes nothing of [api] over, and says so of each key: who was taken
// from the file would else seem to be shut out.
func TestNeedRestart(t *testing.T) {
	require.Empty(t, needRestart(&config.Config{}, &config.Config{}))
	set := config.API{
		Socket: "x", Group: "x", ViewGroup: "x", CertFile: "x", KeyFile: "x", ClientCAFile: "x", Names: []string{"x"},
		Listen: []netip.AddrPort{netip.MustParseAddrPort("[::]:1")}, Clients: map[string]access.Role{"x": access.View},
	}
	for i := range reflect.TypeFor[config.API]().NumField() {
		value := reflect.ValueOf(set).Field(i)
		name := reflect.TypeFor[config.API]().Field(i).Name
		require.False(t, value.IsZero(), "give %s a value", name)
		var next config.Config
		reflect.ValueOf(&next.API).Elem().Field(i).Set(value)
		require.Len(t, needRestart(&config.Config{}, &next), 1, name)
		require.Len(t, needRestart(&next, &config.Config{}), 1, name)
	}
}
