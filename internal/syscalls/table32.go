// SPDX-License-Identifier: Apache-2.0

package syscalls

// amd64Clone is clone on amd64, where the last two are the other way round.
var amd64Clone = []param{
	cloning("flags"), ptr("stack"), ptr("parent_tid").with(0, clonesParentTID),
	ptr("child_tid").with(0, clonesChildTID), hex("tls").with(0, clonesTLS),
}

// table32 has the calls that only 32-bit programs have, or that take a value of 64 bits
// in two registers.
var table32 = map[string][]param{
	// With ids of 16 bits; those with 32 at the end are in the other table.
	"chown":     {str("pathname"), id16("owner"), id16("group")},
	"fchown":    {fd("fd"), id16("owner"), id16("group")},
	"lchown":    {str("pathname"), id16("owner"), id16("group")},
	"setfsgid":  {id16("fsgid")},
	"setfsuid":  {id16("fsuid")},
	"setgid":    {id16("gid")},
	"setregid":  {id16("rgid"), id16("egid")},
	"setresgid": {id16("rgid"), id16("egid"), id16("sgid")},
	"setresuid": {id16("ruid"), id16("euid"), id16("suid")},
	"setreuid":  {id16("ruid"), id16("euid")},
	"setuid":    {id16("uid")},

	"_llseek":          {fd("fd"), pairHigh("offset"), ptr("result"), one("whence", whences)},
	"_newselect":       {num("nfds"), ptr("readfds"), ptr("writefds"), ptr("exceptfds"), ptr("timeout")},
	"fadvise64":        {fd("fd"), pair("offset"), size("len"), one("advice", fadvices)},
	"fadvise64_64":     {fd("fd"), pair("offset"), pair("len"), one("advice", fadvices)},
	"fallocate":        {fd("fd"), flags("mode", fallocateBits), pair("offset"), pair("len")},
	"fanotify_mark":    {fd("fanotify_fd"), flags("flags", fanotifyMarkBits), pairFlags("mask", fanotifyEvents), fd("dirfd"), str("pathname")},
	"fstatat64":        {fd("dirfd"), str("pathname"), ptr("statbuf"), flags("flags", atBits)},
	"fstatfs64":        {fd("fd"), size("size"), ptr("buf")},
	"mmap2":            {ptr("addr"), size("length"), wide(some("prot", 1<<32-1, noProt, protBits)), mapping("flags"), fd("fd"), hex("pgoffset")},
	"preadv":           {fd("fd"), ptr("iov"), size("iovcnt"), pair("offset")},
	"preadv2":          {fd("fd"), ptr("iov"), size("iovcnt"), pair("offset"), flags("flags", rwfBits)},
	"pwritev":          {fd("fd"), ptr("iov"), size("iovcnt"), pair("offset")},
	"pwritev2":         {fd("fd"), ptr("iov"), size("iovcnt"), pair("offset"), flags("flags", rwfBits)},
	"sigaction":        {signal("signum"), ptr("act"), ptr("oldact")},
	"signal":           {signal("signum"), ptr("handler")},
	"sigprocmask":      {one("how", signalActions), ptr("set"), ptr("oldset")},
	"statfs64":         {str("path"), size("size"), ptr("buf")},
	"stime":            {ptr("t")},
	"umount":           {str("target")},
	"waitpid":          {num("pid"), ptr("wstatus"), flags("options", wait4Bits)},
	"recv":             {fd("sockfd"), ptr("buf"), size("len"), flags("flags", msgBits)},
	"send":             {fd("sockfd"), ptr("buf"), size("len"), flags("flags", msgBits)},
	"set_thread_area":  {ptr("u_info")},
	"get_thread_area":  {ptr("u_info")},
	"remap_file_pages": {ptr("addr"), size("size"), hex("prot"), size("pgoff"), hex("flags")},
}

// tableI386 has the calls of i386 that are like no other's.
var tableI386 = map[string][]param{
	"ftruncate64":     {fd("fd"), pair("length")},
	"ipc":             {named("call", ipcs), num("first"), hex("second"), hex("third"), ptr("ptr"), hex("fifth")},
	"mmap":            {ptr("args")},
	"pread64":         {fd("fd"), ptr("buf"), size("count"), pair("offset")},
	"pwrite64":        {fd("fd"), ptr("buf"), size("count"), pair("offset")},
	"readahead":       {fd("fd"), pair("offset"), size("count")},
	"select":          {ptr("args")},
	"socketcall":      {named("call", socketcalls), ptr("args")},
	"sync_file_range": {fd("fd"), pair("offset"), pair("nbytes"), flags("flags", syncRangeBits)},
	"truncate64":      {str("path"), pair("length")},
}

// tableARM has the calls of 32-bit Arm, where a pair begins with an even register.
var tableARM = map[string][]param{
	"arm_fadvise64_64":    {fd("fd"), one("advice", fadvices), pair("offset"), pair("len")},
	"arm_sync_file_range": {fd("fd"), flags("flags", syncRangeBits), pair("offset"), pair("nbytes")},
	"ftruncate64":         {fd("fd"), pad(), pair("length")},
	"pread64":             {fd("fd"), ptr("buf"), size("count"), pad(), pair("offset")},
	"pwrite64":            {fd("fd"), ptr("buf"), size("count"), pad(), pair("offset")},
	"readahead":           {fd("fd"), pad(), pair("offset"), size("count")},
	"truncate64":          {str("path"), pad(), pair("length")},
}
