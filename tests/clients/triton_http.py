"""`tritonclient.http` against the server's KServe v2 side."""

import tritonclient.http as triton

from checks import run

KSERVE = "KServe v2 predict protocol, rest_predict_v2.yaml"


def health(checks, addresses):
    """What load balancers ask."""
    client = triton.InferenceServerClient(addresses.http)
    checks.equal("the server lives", client.is_server_live(), True, KSERVE)
    checks.equal("the server is ready", client.is_server_ready(), True, KSERVE)
    for model in ("demo", "ensemble"):
        checks.equal(f"{model} is ready", client.is_model_ready(model), True, KSERVE)
        checks.equal(f"{model} 1 is ready", client.is_model_ready(model, "1"), True, KSERVE)
        checks.equal(f"{model} 2 is not", client.is_model_ready(model, "2"), False, KSERVE)
    checks.equal("a stranger is not ready", client.is_model_ready("nope"), False, KSERVE)


if __name__ == "__main__":
    run("tritonclient.http", 9, [health])
