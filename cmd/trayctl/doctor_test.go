package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// TestGroupCheck: a membership counts from the next login on.
func TestGroupCheck(t *testing.T) {
	in := func(groups ...string) func(string) bool {
		return func(g string) bool {
			for _, have := range groups {
				if have == g {
					return true
				}
			}
			return false
		}
	}
	for _, row := range []struct {
		uid        int
		now, later []string
		result     wire.CheckResult
		words      string
	}{
		{0, nil, nil, wire.CheckOK, "root"},
		{1000, []string{"trayd"}, []string{"trayd"}, wire.CheckOK, "may change"},
		{1000, nil, []string{"trayd"}, wire.CheckWarning, "after you logged in"},
		{1000, []string{"trayd-view"}, []string{"trayd-view"}, wire.CheckOK, "may look"},
		{1000, []string{"trayd-view"}, []string{"trayd", "trayd-view"}, wire.CheckWarning, "group trayd after"},
		{1000, nil, []string{"trayd-view"}, wire.CheckWarning, "trayd-view after"},
		{1000, nil, nil, wire.CheckWarning, "neither"},
	} {
		k := groupCheck(row.uid, in(row.now...), in(row.later...))
		require.Equal(t, row.result, k.Result, k.Detail)
		require.Contains(t, k.Detail, row.words)
		require.Equal(t, row.result == wire.CheckOK, k.Next == "")
	}
}

// TestUnitCheck judges what systemd says of a unit.
func TestUnitCheck(t *testing.T) {
	right := map[string]string{"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NRestarts": "0"}
	for _, row := range []struct {
		name   string
		change map[string]string
		result wire.CheckResult
		words  string
	}{
		{"right", nil, wire.CheckOK, "active (running)"},
		{"not installed", map[string]string{"LoadState": "not-found"}, wire.CheckWarning, "no such unit"},
		{"failed", map[string]string{"ActiveState": "failed", "Result": "watchdog"}, wire.CheckFailed, "watchdog"},
		{"stopped", map[string]string{"ActiveState": "inactive", "SubState": "dead"}, wire.CheckFailed, "inactive"},
		{"not at boot", map[string]string{"UnitFileState": "disabled"}, wire.CheckWarning, "disabled"},
		{"restarted", map[string]string{"NRestarts": "3"}, wire.CheckWarning, "3 times"},
	} {
		is := make(map[string]string)
		for k, v := range right {
			is[k] = v
		}
		for k, v := range row.change {
			is[k] = v
		}
		k := unitCheck("trayd.service", is)
		require.Equal(t, row.result, k.Result, row.name)
		require.Contains(t, k.Detail, row.words, row.name)
		require.Equal(t, row.result == wire.CheckOK, k.Next == "", row.name)
	}
	require.Equal(t, wire.CheckSkipped, unitCheck("trayd.service", nil).Result)
	for state, want := range map[string]wire.CheckResult{"active": wire.CheckOK, "failed": wire.CheckFailed, "inactive": wire.CheckFailed} {
		k := brokerCheck(map[string]string{"LoadState": "loaded", "ActiveState": state})
		require.Equal(t, want, k.Result, state)
		require.Equal(t, want == wire.CheckOK, k.Next == "", state)
	}
	require.Equal(t, wire.CheckSkipped, brokerCheck(map[string]string{"LoadState": "masked", "ActiveState": "inactive"}).Result)
	require.Equal(t, wire.CheckWarning, brokerCheck(map[string]string{"LoadState": "not-found"}).Result)
}
