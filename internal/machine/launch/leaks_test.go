//go:build !edge

package launch

import "go.uber.org/goleak"

// othersLeaks are none where no bus is started anew.
var othersLeaks []goleak.Option
