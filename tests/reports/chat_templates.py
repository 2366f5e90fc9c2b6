"""Public reports of the area: chat templates."""

from aimo.inference.plan import context_limit, language_model


def C05(case, request):
    config = {"model_type": "gemma3", "text_config": {"max_position_embeddings": 131072}}
    assert context_limit(language_model(config)) == 131072


def C06v(case, request):
    rope = {"rope_type": "yarn", "factor": 4.0}
    config = {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_parameters": rope}
    assert context_limit(language_model(config)) == 131072
