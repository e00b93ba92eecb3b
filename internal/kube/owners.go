// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strconv"
	"strings"
)

// Labels by which controllers of several levels name the one at the top.
const (
	labelTemplateHash = "pod-template-hash"
	labelRolloutHash  = "rollouts-pod-template-hash"
	labelJobSet       = "jobset.sigs.k8s.io/jobset-name"
	labelLWS          = "leaderworkerset.sigs.k8s.io/name"
	labelRayCluster   = "ray.io/cluster"
	labelTrainingJob  = "training.kubeflow.org/job-name"
	labelTrainingBy   = "training.kubeflow.org/operator-name"
)

// API groups of owners.
const (
	groupApps     = "apps"
	groupBatch    = "batch"
	groupJobSet   = "jobset.x-k8s.io"
	groupLWS      = "leaderworkerset.x-k8s.io"
	groupRay      = "ray.io"
	groupKubeflow = "kubeflow.org"
	groupTrainer  = "trainer.kubeflow.org"
	groupArgo     = "argoproj.io"
)

// groupKind is a kind of owners.
type groupKind struct{ group, kind string }

// owners are the known kinds of owners, with the resource to be asked for an
// owner above, or empty where there is none that counts.
var owners = map[groupKind]string{
	{groupApps, "ReplicaSet"}:     "replicasets",
	{groupApps, "StatefulSet"}:    "statefulsets",
	{groupApps, "Deployment"}:     "",
	{groupApps, "DaemonSet"}:      "",
	{groupBatch, "Job"}:           "jobs",
	{groupBatch, "CronJob"}:       "",
	{groupJobSet, "JobSet"}:       "jobsets",
	{groupLWS, "LeaderWorkerSet"}: "",
	{groupRay, "RayCluster"}:      "rayclusters",
	{groupRay, "RayJob"}:          "",
	{groupRay, "RayService"}:      "",
	{groupKubeflow, "PyTorchJob"}: "",
	{groupKubeflow, "TFJob"}:      "",
	{groupKubeflow, "MPIJob"}:     "",
	{groupTrainer, "TrainJob"}:    "",
	{groupKubeflow, "JAXJob"}:     "",
	{groupKubeflow, "XGBoostJob"}: "",
	{groupKubeflow, "PaddleJob"}:  "",
	{groupRay, "RayCronJob"}:      "",
}

func (r Ref) group() string {
	group, _, ok := strings.Cut(r.APIVersion, "/")
	if !ok {
		return ""
	}
	return group
}

func (r Ref) groupKind() groupKind { return groupKind{r.group(), r.Kind} }

// known reports whether a kind of owner is one that pods are named after.
func (r Ref) known() bool {
	_, ok := owners[r.groupKind()]
	return ok
}

// Guess names a pod's owner from the pod alone: its controller, the form of that
// one's name, and labels. A bare pod, and a static one, is its own owner.
func Guess(p *Pod) (kind, name string) {
	ref := controller(p)
	if ref.Kind == "" {
		return KindPod, p.Name
	}
	top := guessAbove(ref, p.Labels)
	return top.Kind, top.Name
}

// controller is the pod's controller or, where labels name an owner further up
// for certain, that one; empty for a bare pod.
func controller(p *Pod) Ref {
	c, labels := p.Controller, p.Labels
	switch {
	case c.Kind == "" || c.groupKind() == (groupKind{"", "Node"}):
		return Ref{} // a static pod belongs to its node
	case c.groupKind() == (groupKind{groupBatch, "Job"}) && labels[labelJobSet] != "":
		return Ref{groupJobSet + "/v1alpha2", "JobSet", labels[labelJobSet]}
	case c.groupKind() == (groupKind{groupBatch, "Job"}) && labels[labelTrainingJob] != "" &&
		strings.HasPrefix(labels[labelTrainingBy], "mpi"):
		return Ref{groupKubeflow + "/v1", "MPIJob", labels[labelTrainingJob]}
	case c.groupKind() == (groupKind{groupApps, "StatefulSet"}) && labels[labelLWS] != "":
		// The leader pod, and not the LeaderWorkerSet, owns the workers' set.
		return Ref{groupLWS + "/v1", "LeaderWorkerSet", labels[labelLWS]}
	case c.group() == groupRay && labels[labelRayCluster] != "":
		return Ref{c.APIVersion, "RayCluster", labels[labelRayCluster]}
	case c.group() == groupKubeflow && labels[labelTrainingJob] != "":
		return Ref{c.APIVersion, c.Kind, labels[labelTrainingJob]}
	}
	return c
}

// guessAbove goes up where an owner's name shows who made it.
func guessAbove(ref Ref, labels map[string]string) Ref {
	switch ref.groupKind() {
	case groupKind{groupApps, "ReplicaSet"}:
		hash := labels[labelTemplateHash]
		if name, ok := strings.CutSuffix(ref.Name, "-"+hash); ok && hash != "" && name != "" {
			return Ref{ref.APIVersion, "Deployment", name}
		}
		hash = labels[labelRolloutHash]
		if name, ok := strings.CutSuffix(ref.Name, "-"+hash); ok && hash != "" && name != "" {
			return Ref{groupArgo + "/v1alpha1", "Rollout", name}
		}
	case groupKind{groupBatch, "Job"}:
		if name, ok := scheduled(ref.Name); ok {
			return Ref{ref.APIVersion, "CronJob", name}
		}
	}
	return ref
}

// scheduled takes the time from the name of a CronJob's Job: minutes since
// 1970. Other numbers of eight digits, such as dates, are none of our time.
func scheduled(job string) (cronJob string, ok bool) {
	const in2017, in2113 = 25_000_000, 75_000_000
	i := strings.LastIndexByte(job, '-')
	if i <= 0 || len(job)-i-1 != 8 {
		return "", false
	}
	minutes, err := strconv.ParseUint(job[i+1:], 10, 32)
	if err != nil || minutes < in2017 || minutes > in2113 {
		return "", false
	}
	return job[:i], true
}

// counts reports whether workloads are called after owner rather than after
// ref, which it owns. What is above a ReplicaSet or a Job always counts: nobody knows
// these by name. Else it must be a known kind, so that what an operator makes
// keeps the name that kubectl shows.
func counts(ref, owner Ref) bool {
	switch ref.groupKind() {
	case groupKind{groupApps, "ReplicaSet"}, groupKind{groupBatch, "Job"}:
		return owner.Kind != ""
	}
	return owner.known()
}
