#!/bin/sh
# Squall is gone, or has to go now: put every pod right that it left failed, and let its experiments be deleted.
# Needs kubectl and a shell, nothing of Squall. Can be run again. Another cluster: KUBECTL="kubectl --context NAME".
set -eu
k=${KUBECTL:-kubectl}

# A webhook of ours that still runs would take the images for the pods' own and fail them again.
$k delete mutatingwebhookconfiguration,validatingwebhookconfiguration squall --ignore-not-found

# Every pod with a record: namespace, name, {"container":"image",...}. `set image` takes init containers too.
$k get pods -A -o go-template='{{range .items}}{{$m := .metadata}}{{with $m.annotations}}{{with index . "squall.dev/original-images"}}{{$m.namespace}} {{$m.name}} {{.}}{{"\n"}}{{end}}{{end}}{{end}}' |
sed 's/":"/=/g; s/[{}"]//g; s/,/ /g' |
while read -r namespace pod images; do
	# shellcheck disable=SC2086 # one word an image, on purpose
	[ -z "$images" ] || $k -n "$namespace" set image "pod/$pod" $images </dev/null || continue
	$k -n "$namespace" annotate pod "$pod" squall.dev/original-images- squall.dev/held-by- squall.dev/until- \
		squall.dev/containers- squall.dev/fault-style- squall.dev/last-error- </dev/null >/dev/null
done
$k label pods -A -l squall.dev/fault squall.dev/fault-

# Experiments whose only finalizer is ours can be deleted again.
$k get podchaos -A -o go-template='{{range .items}}{{if .metadata.finalizers}}{{if eq (len .metadata.finalizers) 1}}{{if eq (index .metadata.finalizers 0) "squall.dev/recover"}}{{.metadata.namespace}} {{.metadata.name}}{{"\n"}}{{end}}{{end}}{{end}}{{end}}' 2>/dev/null |
while read -r namespace name; do
	$k -n "$namespace" patch podchaos "$name" --type=merge -p '{"metadata":{"finalizers":null}}' </dev/null
done
