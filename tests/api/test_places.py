"""One name in two namespaces, for operators of some namespaces and of all."""

from tests.api.operators import operating
from tests.api.world import World, make_manifest, opened


async def test_one_name_in_several_namespaces(world: World) -> None:
    cluster, kubeconfig = world.cluster, world.kubeconfig
    async with (
        opened(cluster, kubeconfig=kubeconfig, namespace=f"{world.namespace}-b") as second,
        opened(cluster, kubeconfig=kubeconfig, namespace=f"{world.namespace}-c") as third,
        world.simulated(),
        second.simulated(),
        third.simulated(),
    ):
        worlds = [world, second, third]
        for place in worlds:
            await place.apply(make_manifest(rounds__count=1, storage={"uri": f"s3://{place.namespace}/x"}))
        async with operating(world, namespaces=f"{world.namespace}, {second.namespace}"):
            for place in (world, second):
                await place.until_phase("Succeeded")
        assert third.job_names() == [], "it is none of its namespaces"
        async with world.proxied() as proxy:
            async with operating(world, proxy, namespaces=""):
                await third.until_phase("Succeeded")
            lists = {call.path for call in proxy.calls if call.verb == "list"}
            paths = {path for path in lists if "/namespaces/" not in path}  # others are of what other tests have left
            ours = {"/apis/comd.dev/v1alpha1/distillationruns", "/apis/comd.dev/v1alpha1/distillationschedules"}
            assert paths == {*ours, "/apis/batch/v1/jobs", "/api/v1/pods"}
            touched = {call.path.split("/namespaces/")[1].split("/")[0] for call in proxy.writes()}
            assert touched & {place.namespace for place in worlds} == {third.namespace}, "the others are done"
        for place in worlds:
            assert place.job_names() == ["tiny-preflight-a1", "tiny-pretrain-a1", "tiny-round-1-a1"]
            uid = place.feed.runs["tiny"]["metadata"]["uid"]
            assert {job.owners[0]["uid"] for job in place.feed.jobs.values()} == {uid}
            config = place.job("tiny-round-1-a1").object["spec"]["template"]["spec"]["containers"][0]["env"]
            assert f"s3://{place.namespace}/x" in str(config)
