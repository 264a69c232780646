#!/bin/sh
# Squall is gone, or has to go now: put every pod right that it left failed, and let its experiments be deleted.
# Needs kubectl and a shell, nothing of Squall. Can be run again. Another cluster: KUBECTL="kubectl --context NAME".
set -eu
k=${KUBECTL:-kubectl}

# A webhook of ours that still runs would take the images for the pods' own and fail them again.
$k delete mutatingwebhookconfiguration,validatingwebhookconfiguration squall --ignore-not-found

# Every pod with a record, whole or in part: namespace, name, {"container":"image",...}.
marked() {
	$k get pods -A -o go-template='{{range .items}}{{$m := .metadata}}{{with $m.annotations}}{{$images := index . "squall.dev/original-images"}}{{if or $images (index . "squall.dev/held-by")}}{{$m.namespace}} {{$m.name}} {{with $images}}{{.}}{{end}}{{"\n"}}{{end}}{{end}}{{end}}'
}

# A pod that goes meanwhile must not keep the others from being put right. `set image` takes init containers too.
marked | sed 's/":"/=/g; s/[{}"]//g; s/,/ /g' |
while read -r namespace pod images; do
	# shellcheck disable=SC2086 # one word an image, on purpose
	[ -z "$images" ] || $k -n "$namespace" set image "pod/$pod" $images </dev/null || continue
	$k -n "$namespace" annotate pod "$pod" squall.dev/original-images- squall.dev/held-by- squall.dev/until- \
		squall.dev/containers- squall.dev/fault-style- squall.dev/last-error- squall.dev/pod-failure- \
		squall.dev/requested-by- </dev/null >/dev/null || continue
done
$k label pods -A -l squall.dev/fault squall.dev/fault- || true

# A container that a dead daemon left frozen, or with lowered limits, no kubectl puts right: it is named, if its status does
# not say that it was put back.
for kind in podchaos.squall.dev stresschaos.squall.dev; do
	$k get "$kind" -A -o go-template='{{range .items}}{{$how := ""}}{{if eq .kind "StressChaos"}}{{if .spec.squeeze}}{{$how = "limited"}}{{end}}{{else if eq .spec.action "container-freeze"}}{{$how = "frozen"}}{{end}}{{if and $how .status}}{{range .status.targets}}{{$reason := or .reason ""}}{{if or (eq .phase "Injected" "Recovering") (and (eq .phase "Selected") .orderedAt) (and (eq .phase "Failed") (eq $reason "NotRecovered" "NotInjected" "InvalidSpec" "Internal"))}}container {{or .container ""}} of pod {{.namespace}}/{{.pod}} on node {{or .node ""}} may still be {{$how}}: delete the pod, or run Squall there again{{"\n"}}{{end}}{{end}}{{end}}{{end}}' 2>/dev/null || true
done

# Our finalizer, and nobody else's, so that the experiments can be deleted: namespace, name, place in the list. By their
# full names: Chaos Mesh has the same short ones.
for kind in podchaos.squall.dev stresschaos.squall.dev; do
	$k get "$kind" -A -o go-template='{{range .items}}{{$m := .metadata}}{{range $i, $one := $m.finalizers}}{{if eq $one "squall.dev/recover"}}{{$m.namespace}} {{$m.name}} {{$i}}{{"\n"}}{{end}}{{end}}{{end}}' 2>/dev/null |
	while read -r namespace name place; do
		at="\"path\":\"/metadata/finalizers/$place\""
		$k -n "$namespace" patch "$kind" "$name" --type=json \
			-p "[{\"op\":\"test\",$at,\"value\":\"squall.dev/recover\"},{\"op\":\"remove\",$at}]" </dev/null || continue
	done
done

left=$(marked)
[ -z "$left" ] || {
	printf 'not put right, see above, and run this again:\n%s\n' "$left" >&2
	exit 1
}
