package systemd

import (
	"errors"
	"fmt"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/stretchr/testify/require"
)

// What Units does with a real manager, internal/machine/launch tests in a host that has
// one.

func TestWhatBusErrorsMean(t *testing.T) {
	for name, want := range map[string]error{
		"org.freedesktop.DBus.Error.AccessDenied":                     ErrDenied,
		"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": ErrDenied,
		"org.freedesktop.DBus.Error.ServiceUnknown":                   ErrNoManager,
		"org.freedesktop.DBus.Error.NameHasNoOwner":                   ErrNoManager,
	} {
		bus := godbus.Error{Name: name, Body: []any{"words"}}
		err := meaning(fmt.Errorf("start x.service: %w", bus))
		require.ErrorIs(t, err, want)
		require.ErrorContains(t, err, "start x.service: words")
	}
	require.NoError(t, meaning(nil))
	other := errors.New("other")
	require.Equal(t, other, meaning(other))
}
