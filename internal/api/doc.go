// Package api is the HTTP surface of the agent: JSON over a unix socket, errors as
// problem+json (RFC 9457) with a stable type and one sentence on what to do next.
//
//	GET  /v1/version
//	GET  /v1/vms                                  every machine with its drives
//	GET  /v1/vms/{vm}
//	GET  /v1/vms/{vm}/drives/{drive}
//	POST /v1/vms/{vm}/drives/{drive}/insert       {"medium", "wait", "force", "then_force", "no_validate"}
//	POST /v1/vms/{vm}/drives/{drive}/change       the same
//	POST /v1/vms/{vm}/drives/{drive}/eject        {"wait", "force", "then_force"}
//	POST /v1/vms/{vm}/drives/{drive}/cancel
//	GET  /v1/vms/{vm}/console                     the screen, a WebSocket
//	GET  /v1/vms/{vm}/serial                      the serial console, a WebSocket
//	GET  /v1/operations/{id}
//	GET  /v1/events                               server-sent events
//	GET  /v1/state                                the records
//	GET  /v1/state/check                          the records against QEMU
//
// A drive of "-" means the machine's only CD drive. A change answers when it has
// ended (200 with the operation) or with ?async=true as soon as it has begun (202).
// It goes on when the client goes away.
//
// The package holds no state of its own; every request ends in one call to the
// agent.
package api
