// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNodeRoot(t *testing.T) {
	for _, tt := range []struct{ path, want string }{
		{"/kubepods/burstable/pod" + uid, "/"},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSlice + ".slice", "/"},
		{"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + uidSlice + ".slice", "/"},
		{"/node-1/kubepods/pod" + uid, "/node-1"},
		{"/docker/" + id1 + "/kubelet/kubepods/besteffort/pod" + uid, "/docker/" + id1},
		{"/system.slice/docker-" + id1 + ".scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + uidSlice + ".slice", "/system.slice/docker-" + id1 + ".scope"},
		{"/kubepods/pod" + uid2 + "/" + id2 + "/kubelet/kubepods/pod" + uid, "/kubepods/pod" + uid2 + "/" + id2},
	} {
		if got := nodeRoot(tt.path); got != tt.want {
			t.Errorf("nodeRoot(%q) = %q, want %q", tt.path, got, tt.want)
		}
	}
}

func TestOwnPart(t *testing.T) {
	for _, tt := range []struct {
		name string
		dirs []string
		// init is the cgroup of process 1.
		init, want string
	}{
		{"a host", []string{"/kubepods/pod" + uid, "/init.scope"}, "/init.scope", ""},
		{"a host whose kubelet has a cgroup root of its own", []string{"/batch/kubepods/pod" + uid, "/init.scope"}, "/init.scope", ""},
		{"two nodes", []string{"/n1/kubepods/pod" + uid, "/n2/kubepods/burstable/pod" + uid2}, "", "/n1"},
		{"a node in a container", []string{"/docker/" + id1 + "/kubelet/kubepods/pod" + uid, "/docker/" + id1 + "/init.scope"}, "/docker/" + id1 + "/init.scope", "/docker/" + id1},
		{"its name within a pod", []string{
			"/n1/kubepods/pod" + uid2 + "/" + id2 + "/kubelet/kubepods/pod" + uid, "/n2/kubepods/pod" + uid,
			"/n2/kubepods/pod" + uid2 + "/" + id2 + "/z/kubepods/pod" + uid,
		}, "", "/n2"},
		{"not there", []string{"/n1/kubepods/pod" + uid2, "/n2/kubepods/pod" + uid2}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for _, d := range tt.dirs {
				if err := os.MkdirAll(root+d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if tt.init != "" {
				writeFile(t, filepath.Join(root, tt.init, "cgroup.procs"), "1\n77\n")
			}
			got, visible := ownPart(root, uid)
			if got != tt.want || visible != (tt.name != "not there") {
				t.Errorf("ownPart = %q, %v, want %q", got, visible, tt.want)
			}
		})
	}
}
