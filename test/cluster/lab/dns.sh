#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs CoreDNS on the second node, as kubeadm and kind do, with a zone of names
# outside the cluster.

# shellcheck source=test/cluster/lab/lib.sh
. "$(dirname "$0")/lib.sh"

kubectl apply -f - >/dev/null <<END
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:coredns"}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "system:coredns"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:coredns"}
subjects:
- {kind: ServiceAccount, name: coredns, namespace: kube-system}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    . {
        errors
        ready
        file /etc/coredns/example.test example.test
        kubernetes cluster.local in-addr.arpa ip6.arpa
    }
  example.test: |
    @ 60 IN SOA ns hostmaster 1 3600 600 86400 60
    @ 60 IN NS ns
    ns 60 IN A 192.0.2.1
    @ 60 IN A 192.0.2.10
    @ 60 IN AAAA 2001:db8::10
    alias 60 IN CNAME @
    api 60 IN A $named4
    api 60 IN AAAA $named6
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: $dns
  selector: {k8s-app: kube-dns}
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      dnsPolicy: Default
      nodeSelector: {kubernetes.io/hostname: n2}
      containers:
      - name: coredns
        image: orb8.test/coredns:1
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
        volumeMounts: [{name: config, mountPath: /etc/coredns}]
      volumes: [{name: config, configMap: {name: coredns}}]
END
