package api

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var anyBody = sha256.Sum256(nil)

// answered plays a request with an answer.
func answered(c *repeats, who, key string, status int) bool {
	e, first := c.begin(who, key, anyBody)
	if first {
		w := httptest.NewRecorder()
		tape := &recorder{reply: &reply{ResponseWriter: w, control: http.NewResponseController(w)}}
		tape.WriteHeader(status)
		c.end(e, tape)
	}
	return first
}

// TestRepeatsKept: what says that nothing was done, for now, isn't kept; keys are of one
// identity; and nobody has others' answers forgotten.
func TestRepeatsKept(t *testing.T) {
	c := newRepeats()
	for _, status := range []int{429, 500, 502, 503, 504, 507} {
		require.True(t, answered(c, "a", "later", status))
	}
	require.True(t, answered(c, "a", "later", 200))
	require.False(t, answered(c, "a", "later", 200))
	require.True(t, answered(c, "b", "later", 200), "another's request")

	for i := range 3 * maxRepeatsOne {
		require.True(t, answered(c, "b", fmt.Sprint(i), 200))
	}
	require.Len(t, c.order, maxRepeatsOne+1)
	require.False(t, answered(c, "a", "later", 200), "b has pushed it out")
	require.False(t, answered(c, "b", fmt.Sprint(3*maxRepeatsOne-1), 200))

	for i := range 2 * maxRepeats { // many who have one each
		answered(c, fmt.Sprint("token:", i), "k", 200)
	}
	require.LessOrEqual(t, len(c.order), maxRepeats)
	require.Len(t, c.all, len(c.order))

	c.order[0].began = time.Now().Add(-repeatTime - time.Minute)
	old := c.order[0]
	answered(c, "c", "k", 200)
	require.NotContains(t, c.all, old.key, "its day is over")
}
