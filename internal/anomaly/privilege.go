// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"fmt"
	"slices"

	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// Capabilities by number (include/uapi/linux/capability.h).
const (
	capDACReadSearch = 2
	capNetRaw        = 13
	capSysModule     = 16
	capSysRawIO      = 17
	capSysChroot     = 18
	capSysPtrace     = 19
	capSysAdmin      = 21
	capSysBoot       = 22
	capSysTime       = 25
	capMknod         = 27
	capSyslog        = 34
	capPerfmon       = 38
)

// asked is a Match of Privileged steps: a call asked for one of the capabilities, or
// for any if there are none. to says what for.
func asked(to string, capabilities ...uint8) func(*Subject) (string, bool) {
	return func(s *Subject) (string, bool) {
		if s.Privilege == nil || len(capabilities) > 0 && !slices.Contains(capabilities, s.Privilege.Capability) {
			return "", false
		}
		return privileged(s, to), true
	}
}

// privileged is the sentence of a privileged call, which may have been refused. That a
// capability was granted does not mean that the call succeeded.
func privileged(s *Subject, to string) string {
	if s.Privilege.OwnUserNS {
		to += ", in a user namespace of its own"
	}
	name, capability := program(s.Process), syscalls.Capability(s.Privilege.Capability)
	if s.Privilege.Denied {
		return fmt.Sprintf("%s tried %s %s, and was refused %s", name, s.Call, to, capability)
	}
	return fmt.Sprintf("%s called %s %s, with %s", name, s.Call, to, capability)
}

// always flags every call that a rule is asked about.
func always(*syscalls.Call) bool { return true }
