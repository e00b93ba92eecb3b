// SPDX-License-Identifier: Apache-2.0

package kube

import "testing"

func TestGuess(t *testing.T) {
	for _, tt := range []struct {
		name       string
		ref        Ref
		labels     map[string]string
		kind, want string
	}{
		{"bare pod", Ref{}, nil, "Pod", "p"},
		{"static pod", Ref{"v1", "Node", "n"}, nil, "Pod", "p"},
		{"pod of a pod", Ref{"v1", "Pod", "driver"}, nil, "Pod", "driver"},
		{
			"Deployment", Ref{"apps/v1", "ReplicaSet", "web-front-abc12"},
			map[string]string{labelTemplateHash: "abc12"}, "Deployment", "web-front",
		},
		{"ReplicaSet alone", Ref{"apps/v1", "ReplicaSet", "web-abc12"}, nil, "ReplicaSet", "web-abc12"},
		{
			"ReplicaSet with another hash", Ref{"apps/v1", "ReplicaSet", "web-abc12"},
			map[string]string{labelTemplateHash: "xyz"}, "ReplicaSet", "web-abc12",
		},
		{"StatefulSet", Ref{"apps/v1", "StatefulSet", "db"}, nil, "StatefulSet", "db"},
		{"DaemonSet", Ref{"apps/v1", "DaemonSet", "agent"}, nil, "DaemonSet", "agent"},
		{"CronJob", Ref{"batch/v1", "Job", "backup-29412345"}, nil, "CronJob", "backup"},
		{"Job", Ref{"batch/v1", "Job", "migrate"}, nil, "Job", "migrate"},
		{"Job with a date", Ref{"batch/v1", "Job", "report-20261123"}, nil, "Job", "report-20261123"},
		{"Job with a short number", Ref{"batch/v1", "Job", "train-2941234"}, nil, "Job", "train-2941234"},
		{"Job with a number only", Ref{"batch/v1", "Job", "-29412345"}, nil, "Job", "-29412345"},
		{"Volcano Job", Ref{"batch.volcano.sh/v1alpha1", "Job", "a-29412345"}, nil, "Job", "a-29412345"},
		{
			"JobSet", Ref{"batch/v1", "Job", "train-workers-0"},
			map[string]string{labelJobSet: "train"}, "JobSet", "train",
		},
		{
			"LeaderWorkerSet", Ref{"apps/v1", "StatefulSet", "llm-0"},
			map[string]string{labelLWS: "llm"}, "LeaderWorkerSet", "llm",
		},
		{"RayCluster", Ref{"ray.io/v1", "RayCluster", "ray"}, map[string]string{labelRayCluster: "ray"}, "RayCluster", "ray"},
		{
			"PyTorchJob", Ref{"kubeflow.org/v1", "PyTorchJob", "bert"},
			map[string]string{labelTrainingJob: "bert"}, "PyTorchJob", "bert",
		},
		{
			"launcher of an MPIJob", Ref{"batch/v1", "Job", "pi-launcher"},
			map[string]string{labelTrainingJob: "pi", labelTrainingBy: "mpi-operator"}, "MPIJob", "pi",
		},
		{"label without its controller", Ref{}, map[string]string{labelJobSet: "train"}, "Pod", "p"},
		{"unknown kind", Ref{"example.com/v1", "Widget", "w"}, nil, "Widget", "w"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kind, name := Guess(&Pod{Name: "p", Controller: tt.ref, Labels: tt.labels})
			if kind != tt.kind || name != tt.want {
				t.Errorf("%s %s, want %s %s", kind, name, tt.kind, tt.want)
			}
		})
	}
}
