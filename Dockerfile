# docker build -t mmmpq . && docker run --rm -it mmmpq
# mmmpq with OpenMMLab's toolboxes; add `--gpus all` to use GPUs. Also for `make test`.
FROM python:3.11-slim
# What OpenCV's wheel links to, and a compiler for our own kernels (slower without one).
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 g++ git make \
    && rm -rf /var/lib/apt/lists/*
COPY requirements /tmp/requirements
RUN pip install --no-cache-dir -r /tmp/requirements/openmmlab.txt
COPY . /opt/mmmpq
RUN pip install --no-cache-dir --no-deps /opt/mmmpq
ENV MMMPQ_ENV=active
WORKDIR /opt/mmmpq
CMD ["bash"]
