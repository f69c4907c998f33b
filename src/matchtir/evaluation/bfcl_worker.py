"""The side of BFCL: runs by file name in the environment of `bfcl-eval`, without the project.

    python bfcl_worker.py describe CATEGORY ...       the entries, as JSON on standard output
    python bfcl_worker.py run THREADS CATEGORY ...    generate and score with the official package

The folder of results is BFCL_PROJECT_ROOT; the policy answers at OPENAI_BASE_URL, at the
temperature BFCL_TEMPERATURE if it is set. Where that folder
has a `test_case_ids_to_generate.json`, only its ids are run. `run` goes on with what is there, and
leaves `scored.jsonl` beside the package's own result/ and score/: a line for each entry.
"""

import argparse
import contextlib
import json
import os
import sys
import threading

NAME = "policy"  # in the package's registry and in the names of its files
NEEDS = {
    "web_search_base": "SERPAPI_API_KEY",
    "web_search_no_snippet": "SERPAPI_API_KEY",
}
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"  # of memory_vector


def unavailable(category):
    """Why a category cannot be run here; None where it can."""
    key = NEEDS.get(category)
    if key and not os.environ.get(key):
        return f"it searches the web, with the key {key}, which is not set"
    if category == "memory_vector":
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(ENCODER)
        except OSError as error:
            return f"it needs the model {ENCODER}: {str(error).splitlines()[0]}"
    return None


def describe(categories):
    """Entries with their turns, functions, gold calls and answers, and the reasons of gaps."""
    from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry

    entries, gaps = [], {}
    for category in categories:
        reason = unavailable(category)
        if reason:
            gaps[category] = reason
            continue
        gold = load_ground_truth_entry(category)
        scored = load_dataset_entry(category, include_prereq=False)
        truths = {e["id"]: g["ground_truth"] for e, g in zip(scored, gold, strict=True)}
        entries += [
            {
                "id": entry["id"],
                "category": category,
                "turns": [[message["content"] for message in turn] for turn in entry["question"]],
                "functions": entry["function"]
                + [doc for docs in entry.get("missed_function", {}).values() for doc in docs],
                "needs": entry.get("depends_on", []),
                "gold": truths.get(entry["id"]),
            }
            for entry in load_dataset_entry(category)
        ]
    return {"entries": entries, "gaps": gaps}


def register():
    """Make the policy known to the package, behind its handler for OpenAI's protocol."""
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

    class PolicyHandler(OpenAICompletionsHandler):
        """Says with each request which entry it belongs to, and to which model it goes."""

        entry = threading.local()

        def _pre_query_processing_FC(self, inference_data, test_entry):
            inference_data["entry"] = test_entry["id"]
            return super()._pre_query_processing_FC(inference_data, test_entry)

        def _query_FC(self, inference_data):
            self.entry.id = inference_data["entry"]
            return super()._query_FC(inference_data)

        def generate_with_backoff(self, **request):
            request.update(model=os.environ["BFCL_MODEL"], user=self.entry.id)
            if "BFCL_TEMPERATURE" in os.environ:
                request["temperature"] = float(os.environ["BFCL_TEMPERATURE"])
            return super().generate_with_backoff(**request)

    MODEL_CONFIG_MAPPING[NAME] = ModelConfig(
        model_name=NAME,
        display_name=NAME,
        url="",
        org="",
        license="",
        model_handler=PolicyHandler,
        is_fc_model=True,
    )


def run(threads, categories):
    """Generate what is missing, score everything, write `scored.jsonl`."""
    register()
    from bfcl_eval import _llm_response_generation as generation
    from bfcl_eval.constants.eval_config import PROJECT_ROOT, TEST_IDS_TO_GENERATE_PATH
    from bfcl_eval.eval_checker import eval_runner

    subset = TEST_IDS_TO_GENERATE_PATH.exists()
    generation.main(
        argparse.Namespace(
            model=[NAME],
            test_category=list(categories),
            temperature=0.0,
            include_input_log=False,
            exclude_state_log=True,
            num_threads=threads,
            result_dir=None,
            run_ids=subset,
            allow_overwrite=False,
        )
    )
    eval_runner.main([NAME], list(categories), None, None, partial_eval=subset)
    with (PROJECT_ROOT / "scored.jsonl").open("w", encoding="utf-8") as file:
        for line in scored(categories):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def scored(categories):
    """Each result with whether it is valid, and its steps in a form of our own."""
    from bfcl_eval.constants.eval_config import RESULT_PATH, SCORE_PATH
    from bfcl_eval.utils import load_file

    for category in categories:
        (scores,) = SCORE_PATH.rglob(f"*_{category}_score.json")
        (results,) = RESULT_PATH.rglob(f"*_{category}_result.json")
        failed = {line["id"]: line for line in load_file(scores) if "id" in line}
        for result in load_file(results, sort_by_id=True):
            failure = failed.get(result["id"])
            yield {
                "id": result["id"],
                "category": category,
                "valid": failure is None,
                "error": None if failure is None else str(failure.get("error"))[:1000],
                "crashed": result["result"] if isinstance(result["result"], str) else None,
                "steps": list(steps(result.get("inference_log", []))),
            }


def steps(log):
    """One {"text", "calls", "outputs"} for each message of the policy."""
    for turn in log:
        if not isinstance(turn, dict):
            continue
        for step in (value for key, value in turn.items() if key.startswith("step_")):
            said = next(entry["content"] for entry in step if entry["role"] == "assistant")
            calls = said if isinstance(said, list) else []
            yield {
                "text": said if isinstance(said, str) else "",
                "calls": [[name, arguments] for call in calls for name, arguments in call.items()],
                "outputs": [entry["content"] for entry in step if entry["role"] == "tool"],
            }


def main():
    """The command line; only results go to standard output."""
    action, *arguments = sys.argv[1:]
    if action == "describe":
        with contextlib.redirect_stdout(sys.stderr):
            found = describe(arguments)
        print(json.dumps(found))
    else:
        run(int(arguments[0]), arguments[1:])


if __name__ == "__main__":
    main()
