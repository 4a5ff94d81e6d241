// Package webhook posts events to URLs, signed as Standard Webhooks has it
// (https://www.standardwebhooks.com): webhook-id, webhook-timestamp, and webhook-signature, the
// HMAC-SHA256 of "id.timestamp.body".
//
// Each URL gets its events in their order, one at a time, and again until it takes them, for
// up to a day. Different ones don't wait for each other, and nobody waits for any of them: what
// doesn't fit into a queue any more pushes the oldest out, and the log says so. Queues are
// memory: what waits when trayd ends is lost. A receiver that must not miss anything follows
// GET /v1/events.
//
// Redirects aren't followed. The secret is read for each request, so it can be changed without
// a restart.
package webhook
