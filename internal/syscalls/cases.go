// SPDX-License-Identifier: Apache-2.0

package syscalls

// noAccess is access's mode when it only asks whether a file is there, noProt the
// protection of memory that nothing may be done with.
var (
	noAccess = map[uint64]string{0: "F_OK"}
	noProt   = map[uint64]string{0: "PROT_NONE"}
)

// accessing is access's mode.
func accessing(name string) param { return some(name, 1<<32-1, noAccess, accessBits) }

// fcntlArgs are the rest of fcntl by its command.
var fcntlArgs = map[uint64][]param{
	0:         {num("arg")},             // F_DUPFD
	1:         {},                       // F_GETFD
	2:         {flags("arg", fdBits)},   // F_SETFD
	3:         {},                       // F_GETFL
	4:         {opening("arg")},         // F_SETFL
	8:         {num("arg")},             // F_SETOWN
	9:         {},                       // F_GETOWN
	10:        {signal("arg")},          // F_SETSIG
	11:        {},                       // F_GETSIG
	1024:      {one("arg", leases)},     // F_SETLEASE
	1025:      {},                       // F_GETLEASE
	1027:      {fd("arg")},              // F_DUPFD_QUERY
	1028:      {},                       // F_CREATED_QUERY
	1030:      {num("arg")},             // F_DUPFD_CLOEXEC
	1031:      {num("arg")},             // F_SETPIPE_SZ
	1032:      {},                       // F_GETPIPE_SZ
	1033:      {flags("arg", sealBits)}, // F_ADD_SEALS
	1034:      {},                       // F_GET_SEALS
	otherwise: {ptr("arg")},
}

var leases = map[uint64]string{0: "F_RDLCK", 1: "F_WRLCK", 2: "F_UNLCK"}

// fsconfigArgs are the rest of fsconfig by its command.
var fsconfigArgs = map[uint64][]param{
	0:         {str("key")},                          // FSCONFIG_SET_FLAG
	1:         {str("key"), str("value")},            // FSCONFIG_SET_STRING
	3:         {str("key"), str("value"), fd("aux")}, // FSCONFIG_SET_PATH
	4:         {str("key"), str("value"), fd("aux")}, // FSCONFIG_SET_PATH_EMPTY
	5:         {str("key"), ptr("value"), fd("aux")}, // FSCONFIG_SET_FD
	6:         {},                                    // FSCONFIG_CMD_CREATE
	7:         {},                                    // FSCONFIG_CMD_RECONFIGURE
	8:         {},                                    // FSCONFIG_CMD_CREATE_EXCL
	otherwise: {str("key"), ptr("value"), num("aux")},
}

// ptraceArgs are the rest of ptrace by its request.
var ptraceArgs = map[uint64][]param{
	0:         {},                                                         // PTRACE_TRACEME
	7:         {num("pid"), hex("addr"), signal("data")},                  // PTRACE_CONT
	8:         {num("pid")},                                               // PTRACE_KILL
	9:         {num("pid"), hex("addr"), signal("data")},                  // PTRACE_SINGLESTEP
	16:        {num("pid")},                                               // PTRACE_ATTACH
	17:        {num("pid"), hex("addr"), signal("data")},                  // PTRACE_DETACH
	24:        {num("pid"), hex("addr"), signal("data")},                  // PTRACE_SYSCALL
	0x4200:    {num("pid"), hex("addr"), wide(flags("data", ptraceBits))}, // PTRACE_SETOPTIONS
	0x4204:    {num("pid"), named("addr", notes), ptr("data")},            // PTRACE_GETREGSET
	0x4205:    {num("pid"), named("addr", notes), ptr("data")},            // PTRACE_SETREGSET
	0x4206:    {num("pid"), hex("addr"), wide(flags("data", ptraceBits))}, // PTRACE_SEIZE
	0x4207:    {num("pid")},                                               // PTRACE_INTERRUPT
	0x4208:    {num("pid")},                                               // PTRACE_LISTEN
	otherwise: {num("pid"), hex("addr"), hex("data")},
}

// notes are kinds of registers.
var notes = map[uint64]string{1: "NT_PRSTATUS", 2: "NT_PRFPREG"}

// prctlArgs are the rest of prctl by its option. Those that only ask have none.
var prctlArgs = map[uint64][]param{
	1:          {signal("arg2")},                                         // PR_SET_PDEATHSIG
	2:          {ptr("arg2")},                                            // PR_GET_PDEATHSIG
	3:          {},                                                       // PR_GET_DUMPABLE
	4:          {size("arg2")},                                           // PR_SET_DUMPABLE
	7:          {},                                                       // PR_GET_KEEPCAPS
	8:          {size("arg2")},                                           // PR_SET_KEEPCAPS
	15:         {str("arg2")},                                            // PR_SET_NAME
	16:         {ptr("arg2")},                                            // PR_GET_NAME
	21:         {},                                                       // PR_GET_SECCOMP
	22:         {one("arg2", seccompModes), ptr("arg3")},                 // PR_SET_SECCOMP
	23:         {capab("arg2")},                                          // PR_CAPBSET_READ
	24:         {capab("arg2")},                                          // PR_CAPBSET_DROP
	27:         {},                                                       // PR_GET_SECUREBITS
	28:         {wide(flags("arg2", secureBits))},                        // PR_SET_SECUREBITS
	29:         {size("arg2")},                                           // PR_SET_TIMERSLACK
	30:         {},                                                       // PR_GET_TIMERSLACK
	36:         {size("arg2")},                                           // PR_SET_CHILD_SUBREAPER
	37:         {ptr("arg2")},                                            // PR_GET_CHILD_SUBREAPER
	38:         {size("arg2"), size("arg3"), size("arg4"), size("arg5")}, // PR_SET_NO_NEW_PRIVS
	39:         {},                                                       // PR_GET_NO_NEW_PRIVS
	47:         {one("arg2", ambients), by(1, ambientArgs)},              // PR_CAP_AMBIENT
	0x53564d41: {size("arg2"), ptr("addr"), size("size"), ptr("name")},   // PR_SET_VMA
	0x59616d61: {off("arg2")},                                            // PR_SET_PTRACER
	otherwise:  {hex("arg2"), hex("arg3"), hex("arg4"), hex("arg5")},
}

var ambientArgs = map[uint64][]param{
	4:         {},
	otherwise: {capab("arg3")},
}

// keyctlArgs are the rest of keyctl by its operation.
var keyctlArgs = map[uint64][]param{
	0:         {named("key", keyrings), num("create")},                                                        // KEYCTL_GET_KEYRING_ID
	1:         {str("name")},                                                                                  // KEYCTL_JOIN_SESSION_KEYRING
	2:         {named("key", keyrings), ptr("payload"), size("plen")},                                         // KEYCTL_UPDATE
	3:         {named("key", keyrings)},                                                                       // KEYCTL_REVOKE
	4:         {named("key", keyrings), id("uid"), id("gid")},                                                 // KEYCTL_CHOWN
	5:         {named("key", keyrings), hex("perm")},                                                          // KEYCTL_SETPERM
	6:         {named("key", keyrings), ptr("buffer"), size("buflen")},                                        // KEYCTL_DESCRIBE
	7:         {named("keyring", keyrings)},                                                                   // KEYCTL_CLEAR
	8:         {named("key", keyrings), named("keyring", keyrings)},                                           // KEYCTL_LINK
	9:         {named("key", keyrings), named("keyring", keyrings)},                                           // KEYCTL_UNLINK
	10:        {named("keyring", keyrings), str("type"), str("description"), named("dest_keyring", keyrings)}, // KEYCTL_SEARCH
	11:        {named("key", keyrings), ptr("buffer"), size("buflen")},                                        // KEYCTL_READ
	15:        {named("key", keyrings), unum("timeout")},                                                      // KEYCTL_SET_TIMEOUT
	21:        {named("key", keyrings)},                                                                       // KEYCTL_INVALIDATE
	22:        {id("uid"), named("keyring", keyrings)},                                                        // KEYCTL_GET_PERSISTENT
	otherwise: {hex("arg2"), hex("arg3"), hex("arg4"), hex("arg5")},
}

// protocols are the rest of socket by its address family.
var protocols = map[uint64][]param{
	2:         {one("protocol", ipProtocols)},  // AF_INET
	10:        {one("protocol", ipProtocols)},  // AF_INET6
	16:        {one("protocol", netlinks)},     // AF_NETLINK
	17:        {named("protocol", ethertypes)}, // AF_PACKET
	otherwise: {num("protocol")},
}

// gettingOptions are the rest of getsockopt by its level.
var gettingOptions = map[uint64][]param{
	0:         {named("optname", ipOptions), ptr("optval"), ptr("optlen")},      // SOL_IP
	1:         {named("optname", socketOptions), ptr("optval"), ptr("optlen")},  // SOL_SOCKET
	6:         {named("optname", tcpOptions), ptr("optval"), ptr("optlen")},     // SOL_TCP
	17:        {named("optname", udpOptions), ptr("optval"), ptr("optlen")},     // SOL_UDP
	41:        {named("optname", ipv6Options), ptr("optval"), ptr("optlen")},    // SOL_IPV6
	263:       {named("optname", packetOptions), ptr("optval"), ptr("optlen")},  // SOL_PACKET
	270:       {named("optname", netlinkOptions), ptr("optval"), ptr("optlen")}, // SOL_NETLINK
	otherwise: {num("optname"), ptr("optval"), ptr("optlen")},
}

// settingOptions are the rest of setsockopt by its level.
var settingOptions = map[uint64][]param{
	0:         {named("optname", ipOptions), ptr("optval"), num("optlen")},      // SOL_IP
	1:         {named("optname", socketOptions), ptr("optval"), num("optlen")},  // SOL_SOCKET
	6:         {named("optname", tcpOptions), ptr("optval"), num("optlen")},     // SOL_TCP
	17:        {named("optname", udpOptions), ptr("optval"), num("optlen")},     // SOL_UDP
	41:        {named("optname", ipv6Options), ptr("optval"), num("optlen")},    // SOL_IPV6
	263:       {named("optname", packetOptions), ptr("optval"), num("optlen")},  // SOL_PACKET
	270:       {named("optname", netlinkOptions), ptr("optval"), num("optlen")}, // SOL_NETLINK
	otherwise: {num("optname"), ptr("optval"), num("optlen")},
}

// futexArgs are the rest of futex by its operation.
var futexArgs = map[uint64][]param{
	0:         {unum("val"), ptr("timeout")},                             // FUTEX_WAIT
	1:         {unum("val")},                                             // FUTEX_WAKE
	3:         {unum("val"), unum("val2"), ptr("uaddr2")},                // FUTEX_REQUEUE
	4:         {unum("val"), unum("val2"), ptr("uaddr2"), unum("val3")},  // FUTEX_CMP_REQUEUE
	5:         {unum("val"), unum("val2"), ptr("uaddr2"), hex("val3")},   // FUTEX_WAKE_OP
	6:         {unum("val"), ptr("timeout")},                             // FUTEX_LOCK_PI
	7:         {},                                                        // FUTEX_UNLOCK_PI
	8:         {},                                                        // FUTEX_TRYLOCK_PI
	9:         {unum("val"), ptr("timeout"), ptr("uaddr2"), hex("val3")}, // FUTEX_WAIT_BITSET
	10:        {unum("val"), hex("val2"), ptr("uaddr2"), hex("val3")},    // FUTEX_WAKE_BITSET
	11:        {unum("val"), ptr("timeout"), ptr("uaddr2")},              // FUTEX_WAIT_REQUEUE_PI
	12:        {unum("val"), unum("val2"), ptr("uaddr2"), unum("val3")},  // FUTEX_CMP_REQUEUE_PI
	13:        {unum("val"), ptr("timeout")},                             // FUTEX_LOCK_PI2
	otherwise: {unum("val"), ptr("timeout"), ptr("uaddr2"), unum("val3")},
}

// personalityArgs are the one argument of personality, by itself: one only asks.
var personalityArgs = map[uint64][]param{
	1<<32 - 1: {flags("persona", nil)},
	otherwise: {some("persona", 0xff, personalities, personalityBits)},
}
